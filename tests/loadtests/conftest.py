"""A stand-in in the place of the service: what the load tests have to notice, it does."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests import service_process
from loadtests.chaos.case import Context, Extent
from loadtests.payloads import Payloads, synthetic

STAND_IN = Path(__file__).with_name("stand_in_service.py")
EXTENT = Extent(
    load_s=0.4, soak_s=0.5, clients=20, unready_within_s=2, restart_within_s=60, most_growth=10, with_peers=False
)


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a stand-in of that behaviour be what the load tests start."""

    def chosen(behaviour: str) -> None:
        monkeypatch.setattr(service_process, "COMMAND", (sys.executable, str(STAND_IN), behaviour))

    return chosen


@pytest.fixture
def context() -> Context:
    known = {"drain_timeout_s": "1", "max_batch_tokens": "512"}
    return Context(Payloads(synthetic(8), "synthetic"), {}, known, capacity_per_s=60, extent=EXTENT)
