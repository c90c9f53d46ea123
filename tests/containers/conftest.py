"""A real container engine. Tests with it run if STACK_TEST is set, as in `make test-all`."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CalledProcessError

import pytest

from tests.conftest import REPOSITORY
from tests.containers.engine import CommandFailed, Engine, make_base_images, missing, started


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Run an engine with base images. STACK_FOLDER names a folder that keeps them for the next run.

    Skip if this machine allows no engine, or if its builds have no network. Failures of the project's own files on a
    working engine are failures.
    """
    if "STACK_TEST" not in os.environ:
        pytest.skip("minutes of work for a container engine; STACK_TEST=1 runs it")
    if reason := missing():
        pytest.skip(reason)
    kept = os.environ.get("STACK_FOLDER")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("engine")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            running = stack.enter_context(started(folder))
            make_base_images(running)
        except (CommandFailed, CalledProcessError) as error:
            pytest.skip(f"no container engine works here: {error}")
        yield running


@pytest.fixture(scope="session")
def service_image(engine: Engine) -> str:
    engine.build(REPOSITORY, "tinyrm", "--target", "service")
    return "tinyrm"
