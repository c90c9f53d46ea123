"""The image of the service, built by a real container engine from the Dockerfile as it is."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY
from tests.containers.containers import PAIR, Container, fails, running, wait_until
from tests.containers.engine import Engine, python_image
from tests.containers.test_locks import LOCKS, pinned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MAX_BYTES_BEYOND_THE_BASE = 350e6
LONG = PAIR | {"prompt": "What is the answer? " * 60}

INSTALLED = "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
# Path, mode, time and content of every file that a build adds to its base.
TREE = """
import hashlib, os, pathlib
digest = hashlib.sha256()
for top in ("/opt/venv", "/app"):
    for path in sorted(pathlib.Path(top).rglob("*")):
        status = path.lstat()
        digest.update(f"{path} {status.st_mode} {status.st_mtime_ns * (not path.is_dir())}".encode())
        digest.update(path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def service(engine: Engine, service_image: str) -> Iterator[Container]:
    with running(engine, service_image) as container:
        yield container


def python(engine: Engine, image: str, code: str) -> str:
    return engine.docker("run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", code)


def test_the_image_is_small(engine: Engine, service_image: str) -> None:
    size, base = (engine.inspect(image)["Size"] for image in (service_image, python_image()))
    assert 50e6 < size - base < MAX_BYTES_BEYOND_THE_BASE


def test_the_image_holds_the_lock_and_nothing_else(engine: Engine, service_image: str) -> None:
    installed = {
        canonicalize_name(name): version for name, version in json.loads(python(engine, service_image, INSTALLED))
    }
    wanted = {
        name: re.sub("^==", "", str(requirement.specifier)) for name, requirement in pinned(LOCKS / "serve.txt").items()
    }
    assert installed == wanted
    assert len(installed) > 20


def test_a_package_that_is_not_the_locked_one_stops_the_build(
    engine: Engine, service_image: str, tmp_path: Path
) -> None:
    for part in ("Dockerfile", ".dockerignore"):
        shutil.copy(REPOSITORY / part, tmp_path)
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "deploy")
    lock = tmp_path / "deploy/locks/serve.txt"
    lock.write_text(re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", lock.read_text()))
    output = fails(engine, "build", "--target", "service-build", str(tmp_path))
    assert "DO NOT MATCH THE HASHES" in output


def test_two_builds_have_the_same_files(engine: Engine, service_image: str) -> None:
    engine.build(REPOSITORY, "tinyrm:again", "--target", "service", "--no-cache")
    assert engine.inspect("tinyrm:again")["Id"] != engine.inspect(service_image)["Id"], "both are the same build"
    trees = {python(engine, image, TREE) for image in (service_image, "tinyrm:again")}
    assert len(trees) == 1


def test_the_service_answers_on_its_published_port(service: Container) -> None:
    reply = service.client.post("/v1/compare", json=PAIR)
    assert reply.status_code == 200
    assert reply.json()["model"].startswith("starter@")


def test_the_service_has_no_name_and_no_capabilities(service: Container) -> None:
    status = dict(line.split(":\t") for line in service.execute("cat", "/proc/1/status").splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_the_service_writes_only_to_tmp(service: Container) -> None:
    assert service.engine.inspect(service.name)["HostConfig"]["ReadonlyRootfs"]
    for place in ("/app/x", "/opt/venv/x", "/etc/x", "/var/tmp/x"):
        assert "Read-only file system" in fails(service.engine, "exec", "--user", "0", service.name, "touch", place)
    service.execute("touch", "/tmp/x")


def test_health_is_readiness(engine: Engine, service: Container, service_image: str) -> None:
    wait_until(lambda: service.state()["Health"]["Status"] == "healthy", "healthy")
    alone = ("run", "--rm", "--entrypoint", "python", service_image, "-I", "-S", "healthcheck.py")
    assert "ConnectionRefusedError" in fails(engine, *alone)


def test_the_image_holds_bytecode(service: Container) -> None:
    """Without it every start would compile everything again."""
    code = "import service.app, fastapi; print(service.app.__cached__, fastapi.__cached__)"
    cached = service.execute("python", "-c", code).split()
    service.execute("ls", *cached)
    assert all("__pycache__" in path for path in cached)


def test_a_missing_model_is_one_line_and_exit_code_3(engine: Engine, service_image: str) -> None:
    output = fails(engine, "run", "--rm", "--env", "TINYRM_MODEL=models/none", service_image)
    assert ": 3\n" in output
    assert "cannot start" in output
    assert "Traceback" not in output


def test_sigterm_answers_what_was_accepted(engine: Engine, service_image: str) -> None:
    # On a busy machine the whole list takes longer than the default time to drain.
    patient = running(engine, service_image, "--env", "TINYRM_DRAIN_TIMEOUT_S=300")
    with patient as container, ThreadPoolExecutor(1) as clients:
        batch = clients.submit(container.client.post, "/v1/compare/batch", json={"items": [LONG] * 40}, timeout=600)
        wait_until(
            lambda: "tinyrm_queue_items 0.0" not in container.client.get("/metrics").text, "a queue", pause_s=0.02
        )
        assert not batch.done(), "the whole batch was already answered"
        engine.docker("stop", "--time", "300", container.name)
        assert container.state()["ExitCode"] == 0
        results = batch.result().json()["results"]
    assert Counter(result.get("error", {}).get("type", "answered") for result in results) == {"answered": 40}


def test_the_image_with_openvino_serves_with_it(engine: Engine, service_image: str) -> None:
    engine.build(REPOSITORY, "tinyrm:openvino", "--target", "service", "--build-arg", "LOCK=openvino")
    with running(engine, "tinyrm:openvino", "--env", "TINYRM_ENGINE=openvino-cpu") as container:
        assert container.client.post("/v1/compare", json=PAIR).status_code == 200
        assert 'tinyrm_engine_info{engine="openvino-cpu"' in container.client.get("/metrics").text


def test_fetched_bundles_have_a_place_to_stay(engine: Engine, service_image: str) -> None:
    """A new volume belongs to root, unless the image has the folder."""
    write = "import os, pathlib; pathlib.Path(os.environ['TINYRM_CACHE'], 'x').touch()"
    options = ("--rm", "--network", "none", "--read-only", "--volume", "fetched:/cache", "--user", "12345:12345")
    engine.docker("run", *options, "--entrypoint", "python", service_image, "-c", write)


def test_an_idle_service_of_two_workers_exits_with_0(engine: Engine, service_image: str) -> None:
    with running(engine, service_image, "--env", "TINYRM_WORKERS=2") as container:
        assert container.client.post("/v1/compare", json=PAIR).status_code == 200
        engine.docker("stop", "--time", "60", container.name)
        assert container.state()["ExitCode"] == 0
