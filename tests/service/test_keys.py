"""Test the command that makes, lists and revokes keys."""

import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.keys import ApiKeys, KeyRing, change_keys, main
from tests.conftest import REPOSITORY
from tests.service.test_auth import entry, write
from tinyrm.errors import InvalidKeys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["keys", *map(str, arguments)])
    return main()


def test_new_key_is_shown_once_works_and_is_not_in_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--file", path, "new", "--name", "trainer", "--scopes", "score,metrics") == 0
    token = capsys.readouterr().out.strip()
    assert re.fullmatch(r"tinyrm_[A-Za-z0-9_-]{43}", token)
    assert token.removeprefix("tinyrm_") not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = KeyRing(path).find(token.encode())
    assert key
    assert (key.name, key.scopes) == ("trainer", {"score", "metrics"})
    assert [file.name for file in path.parent.iterdir()] == ["keys.json"]


def test_list_prints_names_and_scopes_and_no_hash(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--file", path, "new", "--name", "a", "--scopes", "score")
    run(monkeypatch, "--file", path, "new", "--name", "b", "--scopes", "score,admin")
    capsys.readouterr()
    assert run(monkeypatch, "--file", path, "list") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [["a", "score"], ["b", "admin,score"]]
    assert all(len(row) == 3 for row in rows)


def test_revoked_key_is_refused_and_the_others_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = []
    for name in ("a", "b"):
        run(monkeypatch, "--file", path, "new", "--name", name, "--scopes", "score")
        tokens.append(capsys.readouterr().out.strip().encode())
    ring = KeyRing(path)
    assert ring.find(tokens[0])
    assert run(monkeypatch, "--file", path, "revoke", "--name", "a") == 0
    assert ring.find(tokens[0]) is None
    assert ring.find(tokens[1])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["new", "--name", "a", "--scopes", "score"], "has a key a already"),
        (["new", "--name", "b", "--scopes", "fly"], "scopes"),
        (["new", "--name", "a b", "--scopes", "score"], "name"),
        (["revoke", "--name", "b"], "has no key b"),
    ],
)
def test_refusals_are_one_reason_and_change_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    run(monkeypatch, "--file", path, "new", "--name", "a", "--scopes", "score")
    before = path.read_text()
    capsys.readouterr()
    assert run(monkeypatch, "--file", path, *arguments) == 2
    output = capsys.readouterr()
    assert reason in output.err
    assert output.out == "", "a key was shown that does not work"
    assert path.read_text() == before


def test_the_file_is_that_of_the_service_by_default(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "list") == 2
    assert "TINYRM_API_KEYS_FILE" in capsys.readouterr().err
    monkeypatch.setenv("TINYRM_API_KEYS_FILE", str(path))
    assert run(monkeypatch, "new", "--name", "a", "--scopes", "score") == 0
    assert [key["name"] for key in json.loads(path.read_text())["keys"]] == ["a"]


def test_broken_file_is_not_overwritten(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text("{")
    assert run(monkeypatch, "--file", path, "new", "--name", "a", "--scopes", "score") == 2
    assert path.read_text() == "{"
    assert list(path.parent.iterdir()) == [path]


def test_full_disk_loses_no_key_and_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "--file", path, "new", "--name", "a", "--scopes", "score")
    before = path.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(monkeypatch, "--file", path, "new", "--name", "b", "--scopes", "score") == 2
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    def add(number: int) -> None:
        change_keys(path, lambda keys: (*keys, entry(f"key{number}")))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(40)))
    assert {key.name for key in ApiKeys.read(path).keys} == {f"key{number}" for number in range(40)}


def test_link_stays_a_link_and_its_file_is_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = path.with_name("elsewhere.json")
    run(monkeypatch, "--file", target, "new", "--name", "a", "--scopes", "score")
    path.symlink_to(target)
    assert run(monkeypatch, "--file", path, "new", "--name", "b", "--scopes", "score") == 0
    assert path.is_symlink()
    assert len(json.loads(target.read_text())["keys"]) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_leaves_the_file_to_its_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "--file", path, "new", "--name", "a", "--scopes", "score")
    os.chown(path, 65534, 65534)
    run(monkeypatch, "--file", path, "new", "--name", "b", "--scopes", "score")
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_emptied_file_revokes_every_key(path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    change_keys(path, lambda _: (entry("a"),))
    ring = KeyRing(path)
    assert ring.find(b"a")
    path.write_text(content)
    assert ring.find(b"a") is None
    write(path, entry("b"))
    assert ring.find(b"b"), "and the next content counts"


def test_a_service_does_not_start_with_an_empty_file(path: Path) -> None:
    path.touch()
    with pytest.raises(InvalidKeys, match="is not a file of keys"):
        KeyRing(path)


@pytest.mark.parametrize("later", [False, True])
def test_a_pipe_in_place_of_the_file_holds_nothing_up(path: Path, later: bool) -> None:
    """Reading it would wait for a writer, and block every request."""
    if later:
        change_keys(path, lambda _: (entry("a"),))
        ring = KeyRing(path)
        path.unlink()
        os.mkfifo(path)
        assert ring.find(b"a"), "what cannot be read changes nothing"
    else:
        os.mkfifo(path)
        with pytest.raises(InvalidKeys, match="is not a regular file"):
            KeyRing(path)


def test_a_folder_or_a_device_is_no_file_of_keys(tmp_path: Path) -> None:
    for other in (tmp_path, Path("/dev/zero")):
        with pytest.raises(InvalidKeys):
            ApiKeys.read(other)


def test_a_service_does_not_import_the_command_line_of_keys() -> None:
    code = "import sys, service.__main__, service.workers.worker; sys.exit('tyro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
