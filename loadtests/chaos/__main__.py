"""python -m loadtests.chaos: real processes, killed, stopped, flooded and left alone; no request may be lost."""

import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import uvloop

from loadtests import machine
from loadtests.chaos import clients, fuzz, hostile, overload, peers, processes, tables
from loadtests.chaos.case import CLIENT_TIMEOUT_S, Context, Extent, Outcome, Skipped
from loadtests.payloads import VALIDATION, Payloads, read_payloads
from loadtests.report import RELIABILITY, write
from loadtests.service_process import STARTER, started
from loadtests.traffic import peak_rate
from loadtests.wire import Client
from tinyrm.command_line import parse

Name = Literal[
    "vanishing",
    "half-sent",
    "hostile",
    "engine-killed",
    "engine-stopped",
    "full-429",
    "full-503",
    "deadlines",
    "terminated",
    "restarted",
    "soak",
    "fuzz",
    "infinity-overload",
    "infinity-vanishing",
]


@dataclass(frozen=True, slots=True)
class Case:
    """ours: whether the promises are ours, so that a broken one fails the run."""

    title: str
    run: Callable[[Context], Awaitable[Outcome]]
    ours: bool = True


CASES: dict[Name, Case] = {
    "vanishing": Case("clients vanish mid-request", clients.vanishing),
    "half-sent": Case("half-sent headers and bodies", clients.half_sent),
    "hostile": Case("hostile bytes", hostile.hostile),
    "engine-killed": Case("SIGKILL to the engine", processes.engine_killed),
    "engine-stopped": Case("SIGSTOP to the engine", processes.engine_stopped),
    "full-429": Case("full queue, 429", overload.full_429),
    "full-503": Case("full queue, 503", overload.full_503),
    "deadlines": Case("deadlines pass in the queue", overload.deadlines),
    "terminated": Case("SIGTERM", processes.terminated),
    "restarted": Case("SIGKILL and restart", processes.killed_and_restarted),
    "soak": Case("soak", overload.soak),
    "fuzz": Case("schemathesis", fuzz.fuzz),
    "infinity-overload": Case("infinity_emb: five times its capacity", peers.infinity_overload, ours=False),
    "infinity-vanishing": Case("infinity_emb: clients vanish mid-request", peers.infinity_vanishing, ours=False),
}


@dataclass(frozen=True)
class Options:
    """Kill, stop, flood and soak real services, and count every request."""

    model: Path = STARTER
    """Bundle to serve."""
    pairs: Path = VALIDATION
    """Pairs to send; synthetic texts if the file is absent."""
    cases: tuple[Name, ...] = get_args(Name)
    """What to do to the service."""
    minutes: float = 10
    """Minutes of the soak."""
    examples: int = 5_000
    """Examples of schemathesis for each operation with a body."""
    quick: bool = False
    """A second or two for each case: counts, without bounds on time or memory."""
    no_write: bool = False
    """Print the outcomes, and leave the document as it is."""
    document: Path = RELIABILITY
    """Markdown file to write the section into; the numbers go to results/chaos.json beside it."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m loadtests.chaos")
    payloads, settings = read_payloads(options.pairs), {"model": options.model}
    capacity = uvloop.run(measure_capacity(payloads, settings, 0.5 if options.quick else 5))
    # A few seconds on a busy machine show nothing about time or memory: then only counts are promised.
    extent = Extent(soak_s=60 * options.minutes, fuzz_examples=options.examples)
    if options.quick:
        extent = Extent(
            load_s=1.5,
            soak_s=3,
            clients=60,
            fuzz_examples=20,
            unready_within_s=20,
            restart_within_s=60,
            max_growth=10,
            with_peers=False,
        )
    context = Context(payloads, settings, capacity, extent)
    results: dict[str, Any] = {
        "machine": machine.describe(machine.read_cpuinfo()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "payloads": payloads.origin,
        "capacity_per_s": capacity,
        "cases": [],
    }
    for name in options.cases:
        record = {"name": name, "title": CASES[name].title, "ours": CASES[name].ours} | run_case(CASES[name], context)
        print(tables.line(record), flush=True)
        results["cases"].append(record)
    if not options.no_write:
        write(results, "chaos", tables.HEADING, tables.section(results), options.document)
    return report_broken(results)


async def measure_capacity(payloads: Payloads, settings: Mapping[str, object], seconds: float) -> float:
    async with started(**settings) as service:
        client = Client(service.port, timeout_s=CLIENT_TIMEOUT_S)
        return max(1, await peak_rate(client, payloads.singles(), seconds))


def run_case(case: Case, context: Context) -> dict[str, Any]:
    """Return the record of a case. A case that raises has broken its promise, and the others still run."""

    async def run() -> Outcome:
        return await case.run(context)

    try:
        return uvloop.run(run()).record()
    except Skipped as reason:
        return {"reason": str(reason)}
    except Exception as error:  # noqa: BLE001  # whatever it is, it is this case's result
        traceback.print_exc()
        return Outcome(broken=[f"the case failed: {type(error).__name__}: {error}"]).record()


def report_broken(results: Mapping[str, Any]) -> int:
    """Print the broken promises that are ours. Return 1 if there are any."""
    broken = [record for record in results["cases"] if record["ours"] and record.get("broken")]
    for record in broken:
        for promise in record["broken"]:
            print(f"broken: {record['title']}: {promise}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
