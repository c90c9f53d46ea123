"""What a case is given, and what it reports."""

import asyncio
import time
from collections.abc import Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from loadtests.payloads import Payloads
from loadtests.service_process import Service, started
from loadtests.tally import Tally
from loadtests.wire import Client, request, status_of

# Longer than any answer may take while an engine is started anew; who waits longer than this was left hanging.
PATIENCE_S = 30
READY_TIMEOUT_S = 60
POLL_S = 0.05
# Arrivals by chance come in bursts: below the capacity, too, a bound on the wait may refuse some.
OVERLOADED = ("429 overloaded", "503 overloaded")


class Skipped(Exception):
    """The service, or this machine, has not what the case is about. The message says what."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much and how long; and the bounds on time, which say nothing on a machine that others use too."""

    load_s: float = 10
    soak_s: float = 600
    clients: int = 500
    fuzz_examples: int = 5_000
    unready_within_s: float = 2
    restart_within_s: float = 3
    most_growth: float = 0.03
    with_peers: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """settings: of every service started. known: all settings this service has. capacity_per_s: what it can answer."""

    payloads: Payloads
    settings: Mapping[str, object]
    known: Mapping[str, str]
    capacity_per_s: float
    extent: Extent = field(default_factory=Extent)

    @asynccontextmanager
    async def service(self, **settings: object) -> Any:
        async with started(**{**self.settings, **settings}) as service:
            yield service


@dataclass(slots=True)
class Outcome:
    """broken: which promises were. notes: figures of this case alone."""

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
        """Every answer but 200 is one of these, such as `503 shutting_down`."""
        others = {kind: count for kind, count in self.tally.kinds.items() if kind not in allowed}
        self.expect(f"no other errors than {', '.join(sorted(allowed)) or 'none'}, were {others}", not others)

    def record(self) -> dict[str, Any]:
        memory = {"rss_before_bytes": self.rss_before_bytes, "rss_after_bytes": self.rss_after_bytes}
        return self.tally.figures() | memory | {"notes": self.notes, "broken": self.tally.broken() + self.broken}


async def until_status(port: int, wanted: int, within_s: float, path: str = "/readyz") -> float | None:
    """Seconds until a GET has that status (0: no answer); None if it never has."""
    client, begun = Client(port, keep_alive=False, timeout_s=1), time.perf_counter()
    while time.perf_counter() - begun < within_s:
        if await status_of(client, path) == wanted:
            return time.perf_counter() - begun
        await asyncio.sleep(0.01)
    return None


async def until_empty(port: int, within_s: float) -> bool:
    for _ in range(int(within_s / POLL_S)):
        if not await queue_items(port):
            return True
        await asyncio.sleep(POLL_S)
    return False


async def queue_items(port: int) -> float:
    """Comparisons that wait, as the metrics have it."""
    reply = await Client(port, keep_alive=False).ask(request("/metrics", method="GET"))
    lines = [line.split() for line in reply.body.decode().splitlines() if line.startswith("tinyrm_queue_items")]
    return sum(float(value) for _, value in lines)


async def is_well(service: Service, payloads: Payloads, outcome: Outcome) -> None:
    """Afterwards nothing waits for ever, the service is ready, and it answers."""
    service.check_runs()
    client = Client(service.port, keep_alive=False, timeout_s=PATIENCE_S)
    outcome.expect("ready afterwards", await until_status(service.port, 200, READY_TIMEOUT_S) is not None)
    outcome.expect("an empty queue afterwards", await until_empty(service.port, READY_TIMEOUT_S))
    reply = await outcome.tally.ask(client, payloads.singles()[0], time.perf_counter())
    outcome.expect("an answer afterwards", reply is not None and reply.status == 200)
