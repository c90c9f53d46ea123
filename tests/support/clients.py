"""Packages of other projects, so that a test runs a client's own published code against the service."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.kept import REPOSITORY
from tests.support.waiting import PATIENCE_S
from tinyrm.files import locked

# An index that cannot be reached may let pip wait.
MAX_INSTALL_S = 2 * PATIENCE_S
PROGRAMS = REPOSITORY / "tests" / "clients" / "programs"


def client_packages(config: pytest.Config, *requirements: str, any_python: bool = False) -> Path:
    """Return a folder with these packages alone, for the path of a process; skip the test without a package index.

    requirements: of exact versions. What they depend on is not installed: a client that only sends requests needs
        little of what its package declares, and the environment of the tests has much of it.
    any_python: also packages that declare a newer Python than the parts of them need that the test runs.

    The folder is kept in pytest's cache.
    """
    assert all("==" in requirement or "@" in requirement for requirement in requirements), "pin the versions"
    assert config.cache is not None
    name = hashlib.sha256("\n".join(sorted(requirements)).encode()).hexdigest()[:16]
    folder = config.cache.mkdir("clients") / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    done = folder.with_suffix(".done")
    with locked(folder.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
            command += ["--ignore-requires-python"] if any_python else []
            command += requirements
            try:
                installed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MAX_INSTALL_S)
            except subprocess.TimeoutExpired:
                pytest.skip(f"pip installs {', '.join(requirements)} for longer than {MAX_INSTALL_S} s")
            if installed.returncode:
                reason = (installed.stderr.strip().splitlines() or ["no reason"])[-1]
                pytest.skip(f"pip cannot install {', '.join(requirements)}: {reason}")
            shutil.rmtree(folder / "tests", ignore_errors=True)  # of a wheel; a program would find it instead of ours
            done.touch()
    return folder


def run_client(program: str, packages: Path, *arguments: object, within_s: float = PATIENCE_S, **variables: str) -> Any:
    """Run a program of tests/clients/programs/ with the packages on its path, and return the JSON of its last line.

    A process of its own, because a client's modules, event loop and settings would stay in that of the tests.

    variables: of its environment.
    """
    path = os.pathsep.join((str(packages), str(REPOSITORY)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | variables
    command = [sys.executable, str(PROGRAMS / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=within_s, env=environment)
    assert done.returncode == 0, (
        f"{program} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    )
    return json.loads(done.stdout.strip().splitlines()[-1])
