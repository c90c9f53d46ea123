"""python -m loadtests.load.start: seconds until the service is ready, and the memory of its processes."""

import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from loadtests import machine
from loadtests.load import tables
from loadtests.load.front import PAUSE_S
from loadtests.payloads import synthetic
from loadtests.service_process import STARTER, Service, free_port, launch, started
from tinyrm.client import AsyncClient
from tinyrm.command_line import parse

ROLES = {"service.workers.worker": "front", "service.engine.worker": "engine"}


@dataclass(frozen=True)
class Options:
    """Measure the start from a warm disk, and the memory of each process after some comparisons."""

    model: Path = STARTER
    """Bundle to serve."""
    starts: int = 5
    """Starts to take the median of, after one that does not count."""
    fronts: tuple[int, ...] = (1, 2)
    """Numbers of processes that serve HTTP."""
    comparisons: int = 50
    """Comparisons before the memory is read."""
    out: Path | None = None
    """File for the numbers, such as docs/results/start.json."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m loadtests.load.start")
    rows = [asyncio.run(measure(options, fronts)) for fronts in options.fronts]
    results = {
        "machine": machine.describe(machine.read_cpuinfo()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
    }
    print(tables.starts(rows))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


async def measure(options: Options, fronts: int) -> dict[str, Any]:
    """Return one row: seconds of each start, the phases of the last one, and the memory of each process."""
    settings = {"model": options.model, "workers": fronts, "access_log": "off"}
    await start_once(settings)
    starts = [await start_once(settings) for _ in range(options.starts)]
    seconds = [one["ready_s"] for one in starts]
    async with started(**settings) as service:
        async with AsyncClient(f"http://127.0.0.1:{service.port}", timeout_s=60) as client:
            for body in synthetic(options.comparisons):
                await client.compare(**body)
                await asyncio.sleep(PAUSE_S)
        memory = [memory_of(process) for process in service.tree()]
    return {
        "fronts": fronts,
        "median_s": statistics.median(seconds),
        "fastest_s": min(seconds),
        "slowest_s": max(seconds),
        "cpu_s": statistics.median(one["cpu_s"] for one in starts),
        "phases": starts[-1]["phases"],
        "memory": memory,
    }


async def start_once(settings: dict[str, Any]) -> dict[str, Any]:
    """Start the service and stop it. Return the seconds until /readyz returned 200, and the CPU time until then."""
    with tempfile.TemporaryDirectory() as folder:
        began, log = time.perf_counter(), Path(folder) / "service.log"
        service: Service = launch({**settings, "log_format": "json"}, log, free_port())
        try:
            await service.wait_ready()
            ready_s, cpu_s = time.perf_counter() - began, sum(sum(one.cpu_times()[:2]) for one in service.tree())
            return {"ready_s": ready_s, "cpu_s": cpu_s, "phases": phases_of(log)}
        finally:
            service.clear_away()


def phases_of(log: Path) -> dict[str, float]:
    """Return the seconds in the line `ready` of a log; none if it has no such line."""
    for line in log.read_text(encoding="utf-8").splitlines():
        if line.startswith("{") and (event := json.loads(line)).get("event") == "ready":
            return {name: value for name, value in event.items() if name.endswith("_s")}
    return {}


def memory_of(process: psutil.Process) -> dict[str, Any]:
    command, memory = " ".join(process.cmdline()), process.memory_full_info()
    role = next((role for module, role in ROLES.items() if module in command), "service")
    return {"role": role, "resident_bytes": memory.rss, "proportional_bytes": memory.pss}


if __name__ == "__main__":
    raise SystemExit(main())
