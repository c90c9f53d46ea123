"""Test that the service fetches its model before it starts, says so, and needs no network afterwards."""

import hashlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from service import start
from service.logs import configure
from service.process import CANNOT_START
from service.scoring.models import bundle_folders
from service.settings import Settings
from tests.support.file_server import COMMIT, file_server
from tests.support.processes import started
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("TINYRM_MODEL", "https://host/toy.tar.gz"),
        ("TINYRM_MODEL", "http://host/toy.tar.gz#sha256=" + 64 * "0"),
        ("TINYRM_SPECIALISTS", "general=s3://bucket/toy"),
        ("TINYRM_MORE_MODELS", "models/starter,hf://toy"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, place: str
) -> None:
    monkeypatch.setenv(name, place)
    assert start.run(os.environ) == CANNOT_START
    (line,) = capfd.readouterr().err.splitlines()
    assert "cannot start" in line
    assert "invalid_input" in line


def test_every_setting_takes_an_address_and_the_cache_serves_it(bundle_folder: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "toy"), "gztar", bundle_folder)).read_bytes()
    with file_server() as server:
        names = ("a", "b", "c")
        server.files = {f"/{name}.tar.gz": archive for name in names}
        a, b, c = (f"{server.url}/{name}.tar.gz#sha256={hashlib.sha256(archive).hexdigest()}" for name in names)
        cache = tmp_path / "cache"
        settings = Settings(model=a, specialists=f"general={b}", more_models=f"{c}, {bundle_folder}", cache=cache)
        fetched, local = bundle_folders(settings)
        assert len(server.received) == 1, "one hash is one bundle"
    assert fetched.is_relative_to(cache)
    assert local == bundle_folder
    assert bundle_folders(settings) == [fetched, local]


@pytest.mark.parametrize("level", ["info", "debug"])
def test_no_line_of_the_log_has_the_password_or_the_signature_of_an_address(
    bundle_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], level: str
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "toy"), "gztar", bundle_folder)).read_bytes()
    with file_server() as server:
        server.files = {"/toy.tar.gz": archive}
        server.redirects = {"/first": f"{server.url}/toy.tar.gz?signature=SECRET"}
        address = server.url.replace("://", "://user:SECRET@") + "/first?signature=SECRET"
        configure(level, "json")
        bundle_folders(Settings(model=f"{address}#sha256={hashlib.sha256(archive).hexdigest()}", cache=tmp_path / "c"))
    written = capfd.readouterr().err
    assert "fetched" in written
    assert "SECRET" not in written


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_fetches_its_model_once_and_restarts_without_a_network(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    place = f"hf://org/toy@{COMMIT}"
    body = {"prompt": "p", "response_a": "a", "response_b": "b"}
    with file_server() as server:
        server.add_repository("org/toy", bundle_folder)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with started(place, cache=tmp_path, workers=workers) as service:
            first = service.post("/v1/compare", body).json()
            assert len(server.paths()) == len(set(server.paths()))
    with started(place, cache=tmp_path, workers=workers) as service:
        log = Path(f"/proc/{service.popen.pid}/fd/2")
        service.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: "unchanged" in log.read_text(), "the model was opened again")
        assert service.post("/v1/compare", body).json() == first
        assert service.stop() == 0
