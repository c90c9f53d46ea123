"""python -m loadtests.load.curve: latency and refusals at shares of the capacity, into docs/results/load-curve.json.

`python -m tools.charts` draws the result.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from loadtests import machine
from loadtests.payloads import VALIDATION, Payloads, read_payloads
from loadtests.report import write_record
from loadtests.service_process import STARTER, started
from loadtests.traffic import Tally, open_loop, peak_rate
from loadtests.wire import Client
from tinyrm.command_line import parse

# A client that gives up earlier would count late replies as lost.
CLIENT_TIMEOUT_S = 60


@dataclass(frozen=True)
class Options:
    """Offer shares of the capacity in an open loop (Poisson), and measure the latency and what is refused."""

    model: Path = STARTER
    """Bundle to serve."""
    pairs: Path = VALIDATION
    """Pairs to send; synthetic texts if the file is absent."""
    shares: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)
    """Offered load, as shares of the capacity."""
    seconds: float = 30
    """Seconds for each share."""
    max_wait_s: float = 1
    """The service's bound on the wait (TINYRM_MAX_WAIT_S): work that would wait longer is refused."""
    note: str = ""
    """What a reader must know of the machine, such as other work on it."""
    record: Path = Path("docs/results/load-curve.json")
    """File for the numbers."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m loadtests.load.curve")
    payloads = read_payloads(options.pairs)
    settings = {"model": options.model, "max_wait_s": options.max_wait_s}
    measured = uvloop.run(measure(payloads, settings, options.shares, options.seconds))
    record = {
        "machine": machine.describe(machine.read_cpuinfo()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "payloads": payloads.origin,
        "model": options.model.name,
        "max_wait_s": options.max_wait_s,
        "seconds": options.seconds,
        "note": options.note,
    }
    write_record(record | measured, options.record)
    return 1 if any(point["lost"] for point in measured["points"]) else 0


async def measure(
    payloads: Payloads, settings: Mapping[str, object], shares: tuple[float, ...], seconds: float
) -> dict[str, Any]:
    """Measure the capacity in closed loops, then each share of it."""
    points = []
    async with started(**settings) as service:
        client = Client(service.port, timeout_s=CLIENT_TIMEOUT_S)
        peak = await peak_rate(client, payloads.singles(), seconds / 3)
        for share in shares:
            tally = Tally()
            await open_loop(client, payloads.singles(), share * peak, tally, seconds=seconds)
            points.append({"offered": share, "answered_per_s": tally.answered / seconds} | tally.record())
            print(f"{share:.0%}: p50 {tally.percentile_s(50)}, p99 {tally.percentile_s(99)}, refused {tally.refused}")
        client.close()
    return {"capacity_per_s": peak, "points": points}


if __name__ == "__main__":
    sys.exit(main())
