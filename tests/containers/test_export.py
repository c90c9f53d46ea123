"""Test the export image: it contains torch, and needs the network only for the hub."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Trained
from tests.containers.containers import CONFINED, fails
from tests.containers.engine import Engine, python_image
from tests.containers.test_locks import LOCKS
from tinyrm.bundle import Bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@pytest.fixture(scope="module")
def export_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build it with the torch of the lock in the base image: torch's index may not be reachable during the build."""
    context = tmp_path_factory.mktemp("torch")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", context]
    lock = [
        "--require-hashes",
        "--requirement",
        LOCKS / "torch-cpu.txt",
        "--extra-index-url",
        TORCH_INDEX,
        "--retries",
        "0",
    ]
    if subprocess.run([*download, *lock], capture_output=True, check=False).returncode:
        pytest.skip("the torch of deploy/locks/torch-cpu.txt cannot be downloaded here")
    (context / "Dockerfile").write_text(
        f"FROM {python_image()}\nCOPY *.whl /wheels/\nRUN echo 'find-links = /wheels' >> /etc/pip.conf\n"
    )
    engine.build(context, "standin/python-torch")
    shutil.rmtree(context)
    arguments = ("--build-arg", "PYTHON_IMAGE=standin/python-torch", "--build-arg", "TORCH_INDEX=")
    engine.build(REPOSITORY, "tinyrm:export", "--target", "export", *arguments)
    return "tinyrm:export"


def test_an_adapter_becomes_a_bundle(engine: Engine, export_image: str, trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.base.parent, tmp_path / "trained")
    (tmp_path / "models").mkdir()
    mounts = ("--volume", f"{tmp_path}/trained:/trained:ro", "--volume", f"{tmp_path}/models:/app/models")
    options = ("--tmpfs", "/cache", "--user", f"{os.getuid()}:{os.getgid()}", "--network", "none", *CONFINED[:-2])
    output = engine.docker(
        "run",
        "--rm",
        *options,
        *mounts,
        export_image,
        "--model",
        "/trained/base",
        "--adapter",
        "/trained/adapter",
        "--out",
        "models/mine",
    )
    assert "written to models/mine" in output
    assert Bundle.open(tmp_path / "models/mine").manifest.name == "mine"


def test_a_missing_model_is_one_line(engine: Engine, export_image: str) -> None:
    output = fails(engine, "run", "--rm", "--network", "none", export_image, "--model", "/none", "--out", "/cache/x")
    assert "export: " in output
    assert "Traceback" not in output
