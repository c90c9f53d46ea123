"""python -m loadtests.load: the service under more load than its capacity, and the limits of its parts."""

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import uvloop

from loadtests import machine
from loadtests.load import front, mlperf, overload, tables
from loadtests.payloads import VALIDATION, Payloads, read_payloads
from loadtests.report import RELIABILITY, read_record, record_of, write
from loadtests.service_process import STARTER
from tinyrm.command_line import parse

Part = Literal["overload", "mlperf", "ceiling", "overhead", "scrape"]

QUICK: dict[Part, dict[str, Any]] = {
    "overload": {"seconds": 2, "peak_seconds": 0.5},
    "mlperf": {
        "trial_seconds": 1,
        "final_seconds": 3,
        "offline_seconds": 1,
        "steps": 1,
        "p99_bound_s": 2,
        "min_queries": 1,
    },
    "ceiling": {"seconds": 0.5},
    "overhead": {"requests": 20},
    "scrape": {"seconds": 2, "callers": 4, "workers": (1,)},
}


@dataclass(frozen=True)
class Options:
    """Load the service beyond its capacity, and measure the limits of its parts."""

    model: Path = STARTER
    """Bundle to serve."""
    pairs: Path = VALIDATION
    """Pairs to send; synthetic texts if the file is absent."""
    parts: tuple[Part, ...] = ("overload", "mlperf", "ceiling", "overhead", "scrape")
    """What to measure; the others stay in the document as they are."""
    quick: bool = False
    """A few seconds for each part: shows whether it runs, not how fast."""
    no_write: bool = False
    """Print the section, and leave the document as it is."""
    document: Path = RELIABILITY
    """Markdown file to write the section into; the numbers go to results/load.json beside it."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m loadtests.load")
    payloads = read_payloads(options.pairs)
    results: dict[str, Any] = {}
    for part in options.parts:
        print(f"measuring: {part}", flush=True)
        measured = {
            "machine": machine.describe(machine.read_cpuinfo()),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": options.quick,
            "payloads": payloads.origin,
        }
        found = uvloop.run(measure(part, payloads, {"model": options.model}, quick=options.quick))
        results[part] = measured | found
    print(tables.section(results), flush=True)
    if not options.no_write:
        # Parts that were not measured now stay as they are.
        kept = read_record(record_of("load", options.document)) | results
        write(kept, "load", tables.HEADING, tables.section(kept), options.document)
    broken = results.get("overload", {}).get("broken", [])
    for line in [*broken, *tables.missed(results)]:
        print(line, file=sys.stderr)
    return 1 if broken else 0


async def measure(part: Part, payloads: Payloads, settings: dict[str, object], *, quick: bool) -> dict[str, Any]:
    """Measure one part. With `quick`, long enough to show that it runs, too short to show how fast."""
    measures: dict[Part, Callable[..., Awaitable[dict[str, Any]]]] = {
        "overload": partial(overload.measure, payloads),
        "mlperf": partial(mlperf.measure, payloads),
        "ceiling": partial(front.ceiling, payloads),
        "overhead": front.overhead,
        "scrape": partial(front.scrapes, payloads),
    }
    try:
        return await measures[part](settings, **(QUICK[part] if quick else {}))
    except ImportError as error:  # LoadGen's
        return {"reason": f"not measured: {error}", "targets": []}


if __name__ == "__main__":
    sys.exit(main())
