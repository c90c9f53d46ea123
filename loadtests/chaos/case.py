"""The context of a case, and its outcome."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from loadtests.payloads import Payloads
from loadtests.service_process import Service, started
from loadtests.traffic import Tally
from loadtests.wire import Client

# Longer than any reply may take, also while an engine is started again: a longer wait means that the request hangs.
CLIENT_TIMEOUT_S = 30
READY_TIMEOUT_S = 60
POLL_S = 0.05
# Arrivals come in bursts: below the capacity, too, the bound on the wait may refuse some.
OVERLOADED = ("429 overloaded", "503 overloaded")


class Skipped(Exception):
    """This machine lacks what the case needs. The message names it."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Size and duration of the load, and bounds on time, which are meaningless on a machine busy with other work."""

    load_s: float = 10
    soak_s: float = 600
    clients: int = 500
    fuzz_examples: int = 5_000
    unready_within_s: float = 2
    restart_within_s: float = 3
    max_growth: float = 0.03
    with_peers: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """settings: of every service that is started.
    capacity_per_s: comparisons a second.
    """

    payloads: Payloads
    settings: Mapping[str, object]
    capacity_per_s: float
    extent: Extent = field(default_factory=Extent)

    @asynccontextmanager
    async def service(self, **settings: object) -> AsyncIterator[Service]:
        async with started(**{**self.settings, **settings}) as service:
            yield service


@dataclass(slots=True)
class Outcome:
    """broken: the promises that were not kept.
    notes: figures of this case alone.
    """

    tally: Tally = field(default_factory=Tally)
    rss_before_bytes: int | None = None
    rss_after_bytes: int | None = None
    notes: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def expect(self, promise: str, kept: bool) -> None:
        if not kept:
            self.broken.append(promise)

    def expect_within(self, what: str, seconds: float | None, limit_s: float) -> None:
        self.notes[what] = "never" if seconds is None else f"{seconds:.2f} s"
        self.expect(f"{what} within {limit_s:g} s, was {self.notes[what]}", seconds is not None and seconds <= limit_s)

    def expect_kinds(self, allowed: Collection[str]) -> None:
        """Expect that every reply but 200 is one of `allowed`, such as `503 shutting_down`."""
        others = {kind: count for kind, count in self.tally.kinds.items() if kind not in allowed}
        self.expect(f"no other errors than {', '.join(sorted(allowed)) or 'none'}, were {others}", not others)

    def record(self) -> dict[str, Any]:
        memory = {"rss_before_bytes": self.rss_before_bytes, "rss_after_bytes": self.rss_after_bytes}
        return self.tally.record() | memory | {"notes": self.notes, "broken": self.tally.broken() + self.broken}


async def until_status(port: int, status: int, within_s: float, path: str = "/readyz") -> float | None:
    """Return the seconds until a GET returns `status` (0: no reply); None if that never happens."""
    client, started_at = Client(port, keep_alive=False, timeout_s=1), time.perf_counter()
    while time.perf_counter() - started_at < within_s:
        if await client.status(path) == status:
            return time.perf_counter() - started_at
        await asyncio.sleep(0.01)
    return None


async def until_empty(port: int, within_s: float) -> bool:
    """Return whether the queue became empty in time, by the service's metrics."""
    client = Client(port, keep_alive=False)
    for _ in range(int(within_s / POLL_S)):
        lines = (await client.get("/metrics")).body.decode().splitlines()
        if not sum(float(line.split()[1]) for line in lines if line.startswith("tinyrm_queue_items")):
            return True
        await asyncio.sleep(POLL_S)
    return False


async def expect_well(service: Service, payloads: Payloads, outcome: Outcome) -> None:
    """Expect that the service is ready afterwards, has an empty queue, and returns a response."""
    service.check_runs()
    client = Client(service.port, keep_alive=False, timeout_s=CLIENT_TIMEOUT_S)
    outcome.expect("ready afterwards", await until_status(service.port, 200, READY_TIMEOUT_S) is not None)
    outcome.expect("an empty queue afterwards", await until_empty(service.port, READY_TIMEOUT_S))
    reply = await outcome.tally.send(client, payloads.singles()[0], time.perf_counter())
    outcome.expect("an answer afterwards", reply is not None and reply.status == 200)
