"""Start one service on the starter, and get its results without an integration."""

from collections.abc import Iterator

import pytest

from tests.support.processes import STARTER, Process, started


@pytest.fixture(scope="session")
def service() -> Iterator[Process]:
    with started(STARTER) as running:
        yield running


@pytest.fixture(scope="session")
def url(service: Process) -> str:
    return f"http://127.0.0.1:{service.port}"
