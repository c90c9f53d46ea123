"""Test the command's texts in all encodings, its variables, its output when nobody reads it, and other systems."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.scripted_server import RANKED, answer, batch, compared, models, scripted
from tests.support.waiting import PATIENCE_S
from tinyrm.cli import main

QUESTION = "Wie heißt das 你好? 🎉"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("TINYRM_", "PYTHONIO"))}


def run(*words: str, stdin: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "tinyrm", *words],
        cwd=REPOSITORY,
        env=ENVIRONMENT | environment,
        input=stdin,
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_byte_order_mark_is_no_text(
    tmp_path: Path, encoding: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "question.txt").write_bytes(QUESTION.encode(encoding))
    # As in a locale of another encoding: a pipe carries UTF-8, as files do.
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(QUESTION.encode(encoding)), encoding="gbk"))
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    with scripted(compared()) as server:
        assert main(["compare", f"@{file}" if source == "file" else "-", "a", "b", "--url", server.url]) == 0
    assert server.received[0].body["prompt"] == QUESTION


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_text_in_another_encoding_is_named(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "question.txt").write_bytes(b"caf\xe9")
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8", errors="surrogateescape")
    )
    assert main(["compare", f"@{file}" if source == "file" else "-", "a", "b", "--url", "http://127.0.0.1:1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "save it as UTF-8" in line
    assert (str(file) if source == "file" else "standard input") in line


def test_an_encoding_that_is_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "gbk")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("你好".encode("gbk")), encoding="gbk"))
    with scripted(compared()) as server:
        assert main(["compare", "-", "a", "b", "--url", server.url]) == 0
    assert server.received[0].body["prompt"] == "你好"


@pytest.mark.parametrize("stdin", [None, "closed"])
def test_a_closed_standard_input_is_named(
    stdin: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    monkeypatch.setattr("sys.stdin", stdin and closed)
    assert main(["compare", "-", "a", "b", "--url", "http://127.0.0.1:1"]) == 2
    assert main(["score", "-", "--out", str(tmp_path / "out"), "--url", "http://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.count("standard input") == 2


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "latin-1"])
def test_output_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    with scripted(answer(200, RANKED)) as server:
        assert main(["rank", "p", "no", "yes 🎉", "--url", server.url]) == 0
        assert main(["rank", "p", "no", "yes 🎉", "--url", server.url, "--json"]) == 0
    first, second, as_json = written.getvalue().decode(encoding).splitlines()
    assert first.startswith("+0.500")
    assert first.endswith("[1] yes ?")
    assert second.endswith("[0] no")
    assert json.loads(as_json) == RANKED


def test_json_is_the_same_in_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def toy(handler: object, received: object) -> None:
        models("1")(handler, received)  # type: ignore[arg-type]

    outputs = set()
    for encoding in ("utf-8", "ascii"):
        written = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
        with scripted(toy) as server:
            assert main(["models", "--json", "--url", server.url]) == 0
        outputs.add(written.getvalue())
    assert len(outputs) == 1


def test_variables_name_the_service_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbffrom-file\r\n")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with scripted(batch(), compared()) as server:
        monkeypatch.setenv("TINYRM_URL", server.url)
        monkeypatch.setenv("TINYRM_API_KEY", "from-variable\n")
        assert main(["score", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 0
        assert main(["compare", "p", "a", "b"]) == 0
        assert main(["compare", "p", "a", "b", "--api-key-file", str(tmp_path / "key")]) == 0
        monkeypatch.setenv("TINYRM_URL", "http://127.0.0.1:1")
        assert main(["compare", "p", "a", "b", "--url", server.url]) == 0
        monkeypatch.setenv("TINYRM_API_KEY", "")
        assert main(["compare", "p", "a", "b", "--url", server.url]) == 0
    keys = [received.headers.get("Authorization") for received in server.received]
    variable = "Bearer from-variable"
    assert keys == [variable, variable, "Bearer from-file", variable, None]
    assert main(["models", "--timeout-s", "0.2"]) == 1
    assert "at http://127.0.0.1:1;" in capsys.readouterr().err


def test_the_variables_do_not_disturb_a_bundle_or_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINYRM_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TINYRM_API_KEY", "key")
    assert main(["score", "missing.jsonl", "--out", str(tmp_path), "--bundle", str(tmp_path)]) == 2
    assert "missing.jsonl: no such file" in capsys.readouterr().err
    assert main(["serve", "--settings"]) == 0
    monkeypatch.setenv("TINYRM_PORT", "none")
    assert main(["serve"]) == 2
    assert "unknown settings" not in capsys.readouterr().err


@pytest.mark.parametrize("words", ["-m tinyrm --help", "-m tinyrm serve --settings", "-m service --settings"])
def test_output_that_nobody_reads_is_no_traceback(words: str) -> None:
    """With a closed pipe, and with a pipe that closes after one line."""
    for reader in ("true", "head -1"):
        done = subprocess.run(
            ["bash", "-c", f"sleep 0 | {sys.executable} {words} | {reader}; exit $(( ${{PIPESTATUS[1]}} > 1 ))"],
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            capture_output=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_is_one_line() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m tinyrm --help > /dev/full"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "No space left" in done.stderr


def test_calls_need_nothing_of_unix(tmp_path: Path) -> None:
    """Without the modules that Windows does not have, a call works, and a file that needs a lock is refused."""
    code = (
        "import json, sys\n"
        "for name in ('fcntl', 'grp', 'posix_ipc', 'pwd', 'resource', 'termios'): sys.modules[name] = None\n"
        "from tinyrm.cli import main\n"
        "print([main(words) for words in json.loads(sys.argv[1])])"
    )
    (pairs := tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with scripted(batch()) as server:
        url = ["--url", server.url]
        score = ["score", str(pairs), *url, "--out"]
        words = [["models", *url], [*score, "-"], [*score, str(tmp_path / "out.jsonl")]]
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(words)],
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 2]"], done.stderr
    assert "file locks" in done.stderr


def test_arguments_that_the_locale_cannot_decode_are_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(compared()) as server:
        undecoded = QUESTION.encode().decode("ascii", "surrogateescape")
        assert main(["compare", undecoded, f"@@{undecoded}", "b", "--url", server.url]) == 0
    assert server.received[0].body["prompt"] == QUESTION
    assert server.received[0].body["response_a"] == f"@{QUESTION}"
    assert main(["compare", "caf\udce9", "a", "b", "--url", "http://127.0.0.1:1"]) == 2
    assert "an argument is not text in UTF-8" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_in_a_locale_of_another_encoding() -> None:
    with scripted(compared(), answer(200, RANKED)) as server:
        compared_ = run("compare", "-", "a", "b", "--url", server.url, stdin=QUESTION.encode(), LC_ALL="C")
        ranked = run("rank", "p", "no", "yes 🎉", "--url", server.url, PYTHONIOENCODING="gbk")
    assert compared_.returncode == ranked.returncode == 0, compared_.stderr + ranked.stderr
    assert server.received[0].body["prompt"] == QUESTION
