"""Replace the service by a stand-in with faults that the load tests must notice."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests import service_process
from loadtests.chaos.case import Context, Extent
from loadtests.payloads import Payloads, synthetic

STAND_IN = Path(__file__).with_name("stand_in_service.py")
EXTENT = Extent(
    load_s=0.4, soak_s=0.5, clients=20, unready_within_s=2, restart_within_s=60, max_growth=10, with_peers=False
)


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the load tests start a stand-in with the given behaviour."""

    def chosen(behaviour: str) -> None:
        monkeypatch.setattr(service_process, "COMMAND", (sys.executable, str(STAND_IN), behaviour))

    return chosen


@pytest.fixture
def context() -> Context:
    return Context(Payloads(synthetic(8), "synthetic"), {}, capacity_per_s=60, extent=EXTENT)
