"""What the processes of the service take of the machine, told to the metrics every second.

Read from /proc: where there is none, nothing is told. Each process tells of itself and of the engines that it started,
since an engine speaks to nobody else.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import ProcessCollector

from service.metrics import Metrics

INTERVAL_S = 1.0
# As the library calls them.
NAMES = ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds")


@dataclass(frozen=True, slots=True)
class Usage:
    """cpu_s: since it was read last."""

    resident_bytes: float
    open_files: float
    cpu_s: float


class Meter:
    """Reads one process."""

    def __init__(self, pid: int | str) -> None:
        self._collector = ProcessCollector(pid=lambda: pid, registry=None)
        self._told_s = 0.0

    def read(self) -> Usage | None:
        """None if there is no such process any more, or no /proc."""
        found = {family.name: family.samples[0].value for family in self._collector.collect()}
        if not found.keys() >= set(NAMES):
            return None
        resident_bytes, open_files, cpu_s = (found[name] for name in NAMES)
        since_s, self._told_s = max(0.0, cpu_s - self._told_s), cpu_s
        return Usage(resident_bytes, open_files, since_s)


class Watch:
    """role: of this process. engine_pids: of the engines that it started and that run."""

    def __init__(self, metrics: Metrics, role: str, engine_pids: Callable[[], list[int]]) -> None:
        self._metrics, self._role, self._engine_pids = metrics, role, engine_pids
        self._self = Meter("self")
        self._engines: dict[int, Meter] = {}

    async def run(self) -> None:
        """Until cancelled. By how much it wakes up late, every request on this event loop is late as well."""
        while True:
            self._tell()
            due = time.perf_counter() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._metrics.observe_loop_lag(max(0.0, time.perf_counter() - due))

    def _tell(self) -> None:
        self._engines = {pid: self._engines.get(pid) or Meter(pid) for pid in self._engine_pids()}
        self._tell_role(self._role, [self._self])
        self._tell_role("engine", self._engines.values())

    def _tell_role(self, role: str, meters: Iterable[Meter]) -> None:
        usages = [usage for meter in meters if (usage := meter.read())]
        self._metrics.observe_process(
            role,
            sum(usage.resident_bytes for usage in usages),
            sum(usage.open_files for usage in usages),
            sum(usage.cpu_s for usage in usages),
        )
