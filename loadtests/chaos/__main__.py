"""python -m loadtests.chaos: real processes, killed, stopped, flooded and left alone; nothing may be lost."""

import argparse
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from loadtests.arrivals import peak_rate
from loadtests.bench import machine
from loadtests.chaos import clients, engine, fuzz, hostile, peers, process, queue, report, soak
from loadtests.chaos.case import PATIENCE_S, Context, Extent, Outcome, Skipped
from loadtests.payloads import VALIDATION, Payloads, read_payloads
from loadtests.record import DOCUMENT, write
from loadtests.service_process import STARTER, known_settings, started
from loadtests.wire import Client

PEAK_S = 5


async def unprovokable(_: Context) -> Outcome:
    raise Skipped(
        "no request makes a sound model answer NaN; the tests of the service do it with an engine of their own"
    )


@dataclass(frozen=True, slots=True)
class Case:
    """ours: whether a broken promise is ours to keep, and fails the run."""

    title: str
    run: Callable[[Context], Coroutine[Any, Any, Outcome]]
    ours: bool = True


CASES = {
    "vanishing": Case("clients vanish mid-request", clients.vanishing),
    "half-sent": Case("half-sent headers and bodies", clients.half_sent),
    "hostile": Case("hostile bytes", hostile.hostile),
    "engine-killed": Case("SIGKILL to the engine", engine.killed),
    "engine-stopped": Case("SIGSTOP to the engine", engine.stopped),
    "engine-nan": Case("the engine answers NaN", unprovokable),
    "full-429": Case("full queue, 429", queue.full_429),
    "full-503": Case("full queue, 503", queue.full_503),
    "deadlines": Case("deadlines pass in the queue", queue.deadlines),
    "terminated": Case("SIGTERM", process.terminated),
    "restarted": Case("SIGKILL and restart", process.killed_and_restarted),
    "soak": Case("soak", soak.soak),
    "fuzz": Case("schemathesis", fuzz.fuzz),
    "infinity-overload": Case("infinity_emb: five times its capacity", peers.infinity_overload, ours=False),
    "infinity-vanishing": Case("infinity_emb: clients vanish mid-request", peers.infinity_vanishing, ours=False),
    "infinity-engine": Case("infinity_emb: exception in its engine", peers.infinity_engine, ours=False),
}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    payloads, settings = read_payloads(options.pairs), {"model": options.model}
    capacity = uvloop.run(capacity_of(payloads, settings, options.peak_seconds))
    context = Context(payloads, settings, known_settings(), capacity, extent_of(options))
    results: dict[str, Any] = {
        "machine": machine.describe(machine.read_cpuinfo()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "payloads": payloads.origin,
        "capacity_per_s": capacity,
        "cases": [],
    }
    for name in options.cases:
        record = {"name": name, "title": CASES[name].title, "ours": CASES[name].ours} | outcome_of(CASES[name], context)
        print(report.line(CASES[name].title, record), flush=True)
        results["cases"].append(record)
    if not options.no_write:
        write(results, "chaos", report.HEADING, report.section(results), options.document)
    return report_broken(results)


def outcome_of(case: Case, context: Context) -> dict[str, Any]:
    """A case that itself goes wrong has broken its promise, and the others still run."""
    try:
        return uvloop.run(case.run(context)).record()
    except Skipped as reason:
        return {"reason": str(reason)}
    except Exception as error:  # noqa: BLE001  # whatever it is, it is this case's result
        traceback.print_exc()
        return Outcome(broken=[f"the case failed: {type(error).__name__}: {error}"]).record()


async def capacity_of(payloads: Payloads, settings: Mapping[str, object], seconds: float) -> float:
    async with started(**settings) as service:
        return max(1, await peak_rate(Client(service.port, timeout_s=PATIENCE_S), payloads.singles(), seconds))


def extent_of(options: argparse.Namespace) -> Extent:
    """With `--quick`, counts alone are promised: a few seconds on a busy machine say nothing about time or memory."""
    if not options.quick:
        return Extent(soak_s=60 * options.minutes, fuzz_examples=options.examples)
    return Extent(
        load_s=1.5, soak_s=3, clients=60, fuzz_examples=20, unready_within_s=20, restart_within_s=60, most_growth=10,
        with_peers=False,
    )  # fmt: skip


def report_broken(results: Mapping[str, Any]) -> int:
    """1 if a promise of ours was broken."""
    broken = [record for record in results["cases"] if record["ours"] and record.get("broken")]
    for record in broken:
        for promise in record["broken"]:
            print(f"broken: {record['title']}: {promise}", file=sys.stderr)
    return 1 if broken else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.chaos", description=__doc__)
    parser.add_argument("--model", type=Path, default=STARTER, help="bundle to serve")
    parser.add_argument(
        "--pairs", type=Path, default=VALIDATION, help="what is sent; synthetic texts where it is absent"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to do to it")
    parser.add_argument("--minutes", type=float, default=10, help="of the soak")
    parser.add_argument("--examples", type=int, default=5_000, help="of schemathesis, for each call with a body")
    parser.add_argument(
        "--quick", action="store_true", help="a second or two each: counts, no bounds on time or memory"
    )
    parser.add_argument("--no-write", action="store_true", help="print, and leave the document as it is")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.peak_seconds = 0.5 if options.quick else PEAK_S
    return options


if __name__ == "__main__":
    sys.exit(main())
