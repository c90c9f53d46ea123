"""Report memory, CPU time and open files of the service's processes once a second.

The figures come from /proc; systems without it report none. Each process reports itself and the engines it started.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from prometheus_client import ProcessCollector

from service.metrics import Metrics

INTERVAL_S = 1.0
PROC = Path("/proc")
# The names in prometheus_client.
RESIDENT, OPEN_FILES, CPU = "process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds"


class ProcessMetrics:
    """Updates `metrics` until it is cancelled.

    role: the role of this process, one of service.metrics.ROLES.
    engine_pids: returns the process ids of the running engines that this process started.
    encode_wait_s: returns the seconds until all texts that wait in this process have been encoded.
    """

    def __init__(
        self,
        metrics: Metrics,
        role: str,
        engine_pids: Callable[[], list[int]],
        encode_wait_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._metrics, self._role, self._engine_pids = metrics, role, engine_pids
        self._encode_wait_s = encode_wait_s
        self._collectors: dict[int | str, ProcessCollector] = {}
        self._cpu_s: dict[int | str, float] = {}  # of each process, at the last report

    async def run(self) -> None:
        while True:
            self._report(self._role, ["self"])
            self._report("engine", self._engine_pids())
            self._metrics.observe_encode_wait(self._encode_wait_s())
            due = time.perf_counter() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            # A request on this event loop is delayed as much as this task.
            self._metrics.observe_loop_lag(max(0.0, time.perf_counter() - due))

    def _report(self, role: str, pids: Sequence[int | str]) -> None:
        resident = proportional = open_files = cpu_s = 0.0
        for pid in pids:
            if pid not in self._collectors:
                self._collectors[pid] = ProcessCollector(pid=partial(str, pid), registry=None)
            found = {family.name: family.samples[0].value for family in self._collectors[pid].collect()}
            if {RESIDENT, OPEN_FILES, CPU} <= found.keys():
                resident += found[RESIDENT]
                proportional += proportional_bytes(pid)
                open_files += found[OPEN_FILES]
                cpu_s += max(0.0, found[CPU] - self._cpu_s.get(pid, 0.0))
                self._cpu_s[pid] = found[CPU]
        self._metrics.observe_process(role, resident, proportional, open_files, cpu_s)


def proportional_bytes(pid: int | str) -> int:
    """Return the memory of a process, shared pages divided among those that share them; 0 where it is not known.

    The kernel walks the page tables for it: 1 ms for each gigabyte.
    """
    with suppress(OSError):  # the process has ended, is another user's, or the kernel has no such file
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0
