"""python -m loadtests.scaling: what one replica takes and costs, how many a rate needs, and what breaks first."""

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from loadtests.bench import machine
from loadtests.payloads import VALIDATION, Payloads, read_payloads
from loadtests.record import write
from loadtests.scaling import check, limits, parts, plan, report, scenarios
from loadtests.scaling.queueing import Floats
from loadtests.service_process import STARTER, NotServing
from tinyrm.errors import InvalidInput

DOCUMENT, LOAD = Path("docs/scaling.md"), Path("docs/load.json")
# Before anybody has measured a front: of the machine that this page was first written on.
PAIRS_PER_FRONT = 758.0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        payloads = read_payloads(options.pairs)
        print("measuring: the service", flush=True)
        measured = uvloop.run(check.measure(payloads, checked(options)))
    except (NotServing, InvalidInput) as error:
        print(f"{options.model}, {options.pairs}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    tokens = np.array(measured.pop("tokens"), dtype=np.float64)
    print("measuring: tokenizer and metrics", flush=True)
    found, origin = parts_of(measured, payloads, options)
    print("simulating", flush=True)
    results = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(machine.read_cpuinfo()),
        "quick": options.quick, "payloads": payloads.origin, "tokens_per_pair": float(tokens.mean()),
        "measured": measured, "prices": prices(measured, options), "parts": asdict(found), "front_origin": origin,
    } | simulated(measured, tokens, found, options)  # fmt: skip
    text = report.section(results)
    print(text, flush=True)
    if not options.no_write:
        write(results, "scaling", report.HEADING, text, options.document)
    if measured["lost"]:
        print(f"{measured['lost']} requests lost", file=sys.stderr)
    return 1 if measured["lost"] else 0


def checked(options: argparse.Namespace) -> check.Check:
    """With `--quick`, long enough to see that it runs, too short to say how fast."""
    serve: dict[str, object] = {"model": options.model}
    if options.quick:
        return check.Check(idle_s=1.5, busy_s=2, open_s=2, utilisations=(0.3, 0.7), settings=serve)
    return check.Check(settings=serve)


def parts_of(measured: dict[str, Any], payloads: Payloads, options: argparse.Namespace) -> tuple[limits.Parts, str]:
    """What one of each part takes, and where the ceiling of a front process comes from."""
    rate, origin = front_rate(options.pairs_per_front)
    metrics = parts.merging(measured.pop("page"), 3 if options.quick else 50)
    core = parts.tokenizing(payloads, options.model, 0.5 if options.quick else 10)["pairs_per_core_s"]
    both_ways = measured["request_bytes"] + measured["reply_bytes"]
    return limits.Parts(rate, core, **metrics, bytes_per_pair=both_ways), origin


def front_rate(stated: float | None) -> tuple[float, str]:
    if stated is not None:
        return stated, "as stated"
    if LOAD.is_file():
        record = json.loads(LOAD.read_text(encoding="utf-8"))
        rows = record.get("ceiling", {}).get("rows", [])
        rates = [row["requests_per_s"] for row in rows if (row.get("workers"), row.get("items")) == (1, 1)]
        if rates:
            return float(rates[0]), f"`make load`, an engine that does nothing, on {record['machine']['cpu']}"
    return PAIRS_PER_FRONT, "assumed: run `make load`, or state it with --pairs-per-front"


def prices(measured: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    core_hours = machine.usable_cores() * 1e6 / measured["capacity_per_s"] / plan.HOUR_S
    price = options.price_per_core_hour
    return {"per_core_hour": price, "core_hours_per_million": core_hours, "per_million": core_hours * price}


def simulated(
    measured: dict[str, Any], tokens: Floats, found: limits.Parts, options: argparse.Namespace
) -> dict[str, Any]:
    """Everything that is foretold from here on."""
    ours = plan.cpu(check.engine_of(measured), machine.usable_cores(), options.price_per_core_hour)
    replicas = [ours, *plan.expected_gpus(options.price_per_gpu_hour)]
    fewer = 10 if options.quick else 1
    rates = plan.RATES[:3] if options.quick else plan.RATES
    delays_s = (measured["start_s"], 30.0) if options.quick else (measured["start_s"], 30.0, 60.0, 120.0)
    return {
        "plans": [plan.sized(one, tokens, rates) for one in replicas],
        "growth": [
            named(one, limits.growth(one, found, tokens), limits.firsts(one, found, tokens)) for one in replicas
        ],
        "front": scenarios.front_waits(found.pairs_per_front, 60 / fewer),
        "front_s": 60 / fewer,
        "routing": [named(one, scenarios.routing(one.engine, tokens, 200_000 // fewer)) for one in replicas[:2]],
        "bounds": [named(one, scenarios.ongoing_bounds(one.engine, tokens, 40_000 // fewer)) for one in replicas[:2]],
        "late": scenarios.late_replicas(ours.engine, tokens, delays_s),
    }


def named(replica: plan.Replica, rows: list[dict[str, Any]], firsts: dict[str, float] | None = None) -> dict[str, Any]:
    return {"name": replica.name, "rows": rows} | ({"firsts": firsts} if firsts else {})


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.scaling", description=__doc__)
    parser.add_argument("--model", type=Path, default=STARTER, help="bundle to serve")
    parser.add_argument("--pairs", type=Path, default=VALIDATION, help="what is sent; synthetic texts if it is absent")
    parser.add_argument("--price-per-core-hour", type=float, default=0.04, help="USD, an assumption")
    parser.add_argument("--price-per-gpu-hour", type=float, default=3.5, help="USD for an H200, an assumption")
    parser.add_argument("--pairs-per-front", type=float, help=f"of one front process; otherwise that of {LOAD}")
    parser.add_argument("--quick", action="store_true", help="a few seconds: whether it runs, not how fast")
    parser.add_argument("--no-write", action="store_true", help="print, and leave the document as it is")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
