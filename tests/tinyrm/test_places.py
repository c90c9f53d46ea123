"""Test that bundles are fetched from a hub and from URLs: once, whole, verified, and only what was pinned."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.options import Options
from tests.conftest import REPOSITORY
from tests.support.file_server import COMMIT, FileServer, file_server
from tests.support.processes import PATIENCE_S, free_port
from tinyrm import places
from tinyrm.archive import extract_bundle
from tinyrm.bundle import Bundle
from tinyrm.cli import main
from tinyrm.command_line import parse
from tinyrm.errors import BundleUnavailable, InvalidBundle, InvalidInput, TamperedBundle
from tinyrm.places import find
from tinyrm.starter import STARTER


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Serve files, also as the hub of its real client."""
    monkeypatch.setattr(places, "FIRST_PAUSE_S", 0.0)
    with file_server() as files:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", files.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            files.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield files


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def packed(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the toy bundle as `tar -czf` packs its folder."""
    archive = tmp_path_factory.mktemp("packed") / "toy.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(bundle_folder, "toy")
    return archive


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def pinned(server: FileServer, archive: Path | bytes, path: str = "/toy.tar.gz") -> str:
    """Serve an archive, and return its place."""
    data = archive if isinstance(archive, bytes) else archive.read_bytes()
    server.files[path] = data
    return f"{server.url}{path}#sha256={hashlib.sha256(data).hexdigest()}"


def in_tar(*entries: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for entry in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry[0])
            data = b"" if isinstance(entry, tarfile.TarInfo) else entry[1]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def link(kind: bytes, name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_folder_is_used_as_it_is_and_need_not_exist(tmp_path: Path, cache: Path) -> None:
    for place in (tmp_path, str(tmp_path), "models/nowhere", "https:/a/folder"):
        assert find(place, cache) == Path(place)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name@1").mkdir()
    assert find(f"{tmp_path}/org/name@1", cache) == tmp_path / "org" / "name@1"
    assert not cache.exists()


def test_the_starter_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(str(STARTER)) == REPOSITORY / STARTER


@pytest.mark.parametrize("place", ["hf://org/toy@{}", "org/toy@{}"])
def test_a_bundle_on_the_hub_is_fetched_whole_and_then_used_without_a_network(
    server: FileServer, cache: Path, bundle_folder: Path, place: str
) -> None:
    server.add_repository("org/toy", bundle_folder)
    server.files[f"/org/toy/resolve/{COMMIT}/train.py"] = b"not of the bundle"
    folder = find(place.format(COMMIT), cache)
    assert content(folder) == content(bundle_folder)
    before = len(server.received)
    assert find(place.format(COMMIT), cache) == folder
    assert len(server.received) == before
    assert [path.name for path in folder.parent.iterdir() if path.name.endswith(".partial")] == []


def test_an_interrupted_download_from_the_hub_continues(
    server: FileServer, cache: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_repository("org/toy", bundle_folder)
    last = f"/org/toy/resolve/{COMMIT}/tokenizer.json"
    server.statuses[last] = 403
    with pytest.raises(BundleUnavailable, match="hf://org/toy@"):
        find(f"org/toy@{COMMIT}", cache)
    fetched = server.paths()
    del server.statuses[last]
    find(f"org/toy@{COMMIT}", cache)
    assert fetched
    assert set(server.paths()[len(fetched) :]) & set(fetched) == set(), "nothing is fetched twice"


@pytest.mark.parametrize(("revision", "reason"), [("", "the commit is missing"), ("@main", "main is not a commit")])
def test_what_may_change_is_refused_with_the_commit_that_it_is_now(
    server: FileServer, cache: Path, bundle_folder: Path, revision: str, reason: str
) -> None:
    server.add_repository("org/toy", bundle_folder)
    with pytest.raises(InvalidInput, match=f"{reason}.*pin it: hf://org/toy@{COMMIT}"):
        find(f"hf://org/toy{revision}", cache)


def test_each_trouble_with_the_hub_is_one_line_that_says_what_to_do(
    server: FileServer, cache: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_repository("org/toy", bundle_folder, leave_out=("tokenizer.json",))
    server.files["/api/models/org/encoder"] = b"{}"
    server.statuses[f"/org/secret/resolve/{COMMIT}/manifest.json"] = 401

    def reason(place: str) -> str:
        with pytest.raises(InvalidBundle) as refused:
            find(place, cache)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "tokenizer.json, which its manifest names" in reason(f"org/toy@{COMMIT}")
    assert "tinyrm export --model org/encoder" in reason(f"org/encoder@{COMMIT}")
    assert "no such revision" in reason(f"org/encoder@{'f' * 40}")
    assert "HF_TOKEN" in reason(f"org/secret@{COMMIT}")
    assert "HF_TOKEN" in reason(f"org/nowhere@{COMMIT}")
    assert "HF_TOKEN" in reason("hf://org/nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in reason(f"org/other@{COMMIT}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert "the hub cannot be reached" in reason("hf://org/other")


def test_a_damaged_bundle_of_the_hub_is_refused_and_fetched_anew(
    server: FileServer, cache: Path, bundle_folder: Path
) -> None:
    server.add_repository("org/toy", bundle_folder)
    path = f"/org/toy/resolve/{COMMIT}/tokenizer.json"
    right, server.files[path] = server.files[path], b"{}"
    with pytest.raises(TamperedBundle):
        find(f"org/toy@{COMMIT}", cache)
    server.files[path] = right
    Bundle.open(find(f"org/toy@{COMMIT}", cache))


@pytest.mark.parametrize("kind", ["tar.gz in a folder", "tar", "zip"])
def test_an_archive_is_fetched_from_a_url_and_then_used_without_a_network(
    server: FileServer, bundle_folder: Path, packed: Path, tmp_path: Path, kind: str
) -> None:
    cache, archive = tmp_path / "cache", packed
    if kind == "tar":
        archive = Path(shutil.make_archive(str(tmp_path / "flat"), "tar", bundle_folder))
    if kind == "zip":
        archive = Path(shutil.make_archive(str(tmp_path / "toy"), "zip", bundle_folder.parent, "toy"))
    place = pinned(server, archive)
    folder = find(place, cache)
    assert content(folder) == content(bundle_folder)
    server.files.clear()
    assert find(place, cache) == folder
    assert len(server.received) == 1


def test_a_download_continues_after_lost_connections_and_in_the_next_run(
    server: FileServer, cache: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = pinned(server, packed)
    server.losses["/toy.tar.gz"] = 3
    monkeypatch.setattr(places, "TRIES", 1)
    with pytest.raises(BundleUnavailable, match="is there a network"):
        find(place, cache)
    monkeypatch.undo()
    monkeypatch.setattr(places, "FIRST_PAUSE_S", 0.0)
    Bundle.open(find(place, cache))
    starts = [sent for _, _, sent in server.received if sent]
    assert len(starts) == 3
    assert len(set(starts)) == 3, "each try begins where the last one ended"


def test_a_file_begun_by_another_run_does_not_spoil_the_download(server: FileServer, cache: Path, packed: Path) -> None:
    place = pinned(server, packed)
    partial = cache / "url" / f".{place[-64:]}.partial"
    partial.mkdir(parents=True)
    (partial / "archive").write_bytes(b"of something else")
    Bundle.open(find(place, cache))


def test_another_file_than_the_pinned_one_is_refused(server: FileServer, cache: Path, packed: Path) -> None:
    place = pinned(server, packed)
    server.files["/toy.tar.gz"] = in_tar(("manifest.json", b"{}"))
    with pytest.raises(TamperedBundle, match="it is another file, or it was changed"):
        find(place, cache)
    assert [path.name[-5:] for path in (cache / "url").iterdir()] == [".lock"], "nothing of it is kept"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("https://user:secret@host/toy.tar.gz?key=secret", "write https://host/toy.tar.gz#sha256=HEX"),
        ("https://host/toy.tar.gz#sha256=12", "the hash is missing"),
        (f"http://host/toy.tar.gz?key=secret#sha256={'0' * 64}", "use https://"),
        (f"https://[/toy.tar.gz#sha256={'0' * 64}", "is not a URL"),
        ("s3://bucket/toy", "copy this one into a folder"),
        ("hf://toy", "hf://ORG/NAME@COMMIT"),
        ("hf://org/../toy@main", "hf://ORG/NAME@COMMIT"),
    ],
)
def test_a_place_that_is_not_safe_or_not_pinned_is_refused_without_a_call(cache: Path, place: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        find(place, cache)
    assert reason in str(refused.value)
    assert "secret" not in str(refused.value)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "credentials"), (403, "signed"), (404, "no such file"), (400, "400")]
)
def test_a_refused_download_is_not_repeated_and_says_why(
    server: FileServer, cache: Path, packed: Path, status: int, reason: str
) -> None:
    place = pinned(server, packed)
    server.statuses["/toy.tar.gz"] = status
    with pytest.raises(BundleUnavailable, match=reason):
        find(place, cache)
    assert len(server.received) == 1


def test_a_redirect_must_not_leave_https(server: FileServer, cache: Path, packed: Path) -> None:
    place = pinned(server, packed)
    server.redirects["/first"] = f"{server.url}/toy.tar.gz"
    Bundle.open(find(place.replace("/toy.tar.gz", "/first"), cache))
    server.redirects["/second"] = "http://example.com/toy.tar.gz"
    other = f"{server.url}/second#sha256={'0' * 64}"
    with pytest.raises(BundleUnavailable, match=r"redirects to http://example\.com"):
        find(other, cache)


@pytest.mark.parametrize(
    "place",
    [
        "s3://user:SECRET@host/toy.tar.gz?sig=SECRET",
        "HTTPS://user:SECRET@host/toy.tar.gz?sig=SECRET#sha256=" + 64 * "0",
        "https://user:SECRET@[host/toy.tar.gz?sig=SECRET#sha256=" + 64 * "0",
        "https://user:SECRET@host/toy.tar.gz?sig=SECRET",
        "http://user:SECRET@host/toy.tar.gz?sig=SECRET#sha256=" + 64 * "0",
    ],
)
def test_no_refusal_repeats_a_password_or_a_signature(cache: Path, place: str) -> None:
    with pytest.raises(InvalidInput) as error:
        find(place, cache)
    assert "SECRET" not in str(error.value)
    assert "host/toy.tar.gz" in str(error.value)


def test_no_service_at_the_address_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "FIRST_PAUSE_S", 0.0)
    address = f"http://127.0.0.1:{free_port()}/toy.tar.gz"
    with pytest.raises(BundleUnavailable, match=f"{address}: .*is there a network"):
        find(f"{address}#sha256={'0' * 64}", cache)


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (in_tar(("toy/manifest.json", b"{}"), ("../evil", b"x")), "a path that leaves it"),
        (in_tar(("manifest.json", b"{}"), ("/etc/evil", b"x")), "a path that leaves it"),
        (in_tar(("manifest.json", b"{}"), link(tarfile.SYMTYPE, "model.onnx", "/etc/passwd")), "neither a file"),
        (in_tar(("manifest.json", b"{}"), link(tarfile.LNKTYPE, "model.onnx", "manifest.json")), "neither a file"),
        (in_tar(("manifest.json", b"{}"), link(tarfile.FIFOTYPE, "model.onnx", "")), "neither a file"),
        (in_tar(("manifest.json", b"{}"), ("model.onnx", bytes(80 << 20))), "too large"),
        (in_tar(*((f"f{i}", b"") for i in range(1001))), "too large"),
        (in_tar(("config.json", b"{}"), ("a/b/manifest.json", b"{}")), "tinyrm export --model"),
        (in_tar(("a/manifest.json", b"{}"), ("b/manifest.json", b"{}")), "more than one manifest.json"),
        (in_tar(("manifest.json", b"{}"))[:-9], "cannot be read|has no readable"),
        (in_tar(("manifest.json", b"{}"), ("model.onnx", b"x"), ("model.onnx", b"y")), "a file twice"),
        (b"<html>not an archive</html>", "cannot be read"),
    ],
    ids=["above", "absolute", "link", "hard link", "pipe", "bomb", "many", "no bundle", "two", "torn", "twice", "page"],
)
def test_an_archive_that_is_not_a_bundle_writes_nothing_outside(
    server: FileServer, cache: Path, tmp_path: Path, archive: bytes, reason: str
) -> None:
    with pytest.raises(InvalidBundle, match=reason):
        find(pinned(server, archive), cache)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
    assert [path.name[:1] for path in (cache / "url").iterdir()] == ["."], "there is a lock, and no bundle"


def test_a_zip_with_a_link_or_a_bomb_is_refused(tmp_path: Path) -> None:
    def refused(entry: zipfile.ZipInfo, data: bytes) -> str:
        with zipfile.ZipFile(tmp_path / "toy.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("manifest.json", "{}")
            packed.writestr(entry, data, zipfile.ZIP_DEFLATED)
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(InvalidBundle) as error:
            extract_bundle(tmp_path / "toy.zip", tmp_path / "out")
        return str(error.value)

    a_link = zipfile.ZipInfo("model.onnx")
    a_link.external_attr = 0o120777 << 16
    assert "neither a file" in refused(a_link, b"/etc/passwd")
    assert "too large" in refused(zipfile.ZipInfo("model.onnx"), bytes(80 << 20))
    assert "leaves it" in refused(zipfile.ZipInfo("..\\evil"), b"")


def test_hidden_files_and_other_folders_of_an_archive_are_left_out(
    server: FileServer, cache: Path, bundle_folder: Path
) -> None:
    files = [(f"toy/{name}", data) for name, data in content(bundle_folder).items()]
    folder = find(pinned(server, in_tar(*files, ("toy/._model.onnx", b"x"), ("other/run.py", b"x"))), cache)
    assert content(folder) == content(bundle_folder)


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(
    server: FileServer, cache: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = pinned(server, packed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and Usage())
    with pytest.raises(BundleUnavailable, match=r"No space left on device.*TINYRM_CACHE"):
        find(place, cache)
    assert not list((cache / "url").glob(".*.partial"))


class Usage:
    free = 10


def test_a_cache_that_cannot_be_written_names_the_setting(server: FileServer, tmp_path: Path, packed: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleUnavailable, match=r"cannot be stored in .*TINYRM_CACHE names another folder"):
        find(pinned(server, packed), tmp_path / "file")


def test_a_user_without_a_home_must_name_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(InvalidInput, match="set TINYRM_CACHE to a folder"):
        find(f"https://host/toy.tar.gz#sha256={'0' * 64}")


def test_the_variable_names_the_cache(
    server: FileServer, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYRM_CACHE", str(tmp_path / "of the variable"))
    assert find(pinned(server, packed)).parent.parent == tmp_path / "of the variable"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TINYRM_CACHE")
    assert find(pinned(server, packed)).parent.parent == tmp_path / ".cache" / "tinyrm"


def test_two_at_once_fetch_it_once(server: FileServer, cache: Path, packed: Path) -> None:
    place, found = pinned(server, packed), []
    threads = [threading.Thread(target=lambda: found.append(find(place, cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(found) == 4
    assert len(server.received) == 1


def test_an_evaluation_takes_an_address_for_its_bundle(
    server: FileServer, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYRM_CACHE", str(tmp_path / "cache"))
    options = parse(Options, ["--bundle", pinned(server, packed)], prog="tinyrm evaluate")
    assert options.bundle is not None
    Bundle.open(options.bundle)
    assert parse(Options, ["--bundle", "models/mine"], prog="tinyrm evaluate").bundle == Path("models/mine")


def test_a_command_shows_what_it_fetches(
    server: FileServer, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TINYRM_CACHE", str(tmp_path / "cache"))
    place = pinned(server, packed)
    assert main(["bench", place, "--tokens", "16", "--repeat", "1"]) == 0
    shown = [record.getMessage() for record in caplog.records if record.name == "tinyrm.places"]
    assert [line.split()[0] for line in shown] == ["fetching", "fetched"]
    assert main(["bench", place.partition("#")[0]]) == 2


@pytest.mark.slow
def test_processes_share_one_fetch_from_the_hub_that_the_environment_names(
    server: FileServer, tmp_path: Path, bundle_folder: Path
) -> None:
    server.add_repository("org/toy", bundle_folder)
    code = f"import tinyrm; print(tinyrm.load('org/toy@{COMMIT}').compare('2 + 2?', '4', '5').margin)"
    environment = os.environ | {"HF_ENDPOINT": server.url, "TINYRM_CACHE": str(tmp_path / "cache")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    printed = {process.communicate(timeout=PATIENCE_S)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == 1
    assert len(server.paths()) == len(set(server.paths()))
