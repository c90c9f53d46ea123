"""python -m loadtests.bench: every engine at every length, side by side, and what this machine could do at best."""

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtests.bench import machine, report
from loadtests.bench.contenders import DEV, PEER_WORKERS, PEERS, RUNTIMES, contenders, environment, names
from loadtests.bench.geometry import GEOMETRIES, Geometry, products, useful_flops
from loadtests.bench.harness import Entry, Limits, measure, parity_failures
from loadtests.bench.prepare import prepare, read_special
from loadtests.bench.process import Worker, WorkerFailed
from loadtests.bench.shapes import Shape, shapes_of

ROOT = Path("runs/bench")
DOCUMENT, RECORD, PLOT = Path("docs/performance.md"), Path("docs/bench.json"), Path("docs/bench.png")
QUICK_TOKENS = (64, 256)
LARGE_PRODUCT = (2048, 2048, 2048)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cpuinfo = machine.read_cpuinfo()
    results: dict[str, Any] = {
        "machine": machine.describe(cpuinfo),
        "threads": options.threads,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "geometries": {},
    }
    failures = []
    for name in options.geometry:
        print(f"geometry {name}", flush=True)
        measured, entries = measure_geometry(GEOMETRIES[name], options, native_bf16=machine.has_native_bf16(cpuinfo))
        results["geometries"][name] = measured
        failures += [f"{name}: {failure}" for failure in parity_failures(entries)]
        results["parity_failures"] = failures
        # After each geometry: a run takes hours, and one that is stopped has shown something too.
        write(results, keep=not options.no_write)
    for failure in failures:
        print(f"parity failed, {failure} from the full head", file=sys.stderr)
    return 1 if failures else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument("--geometry", type=_listed(GEOMETRIES), default=list(GEOMETRIES), help="comma-separated")
    parser.add_argument("--tokens", type=lambda text: tuple(map(int, text.split(","))), help="comma-separated lengths")
    parser.add_argument("--contenders", type=_listed(names()), default=names(), help=", ".join(names()))
    parser.add_argument("--threads", type=int, default=machine.usable_cores(), help="of each contender")
    parser.add_argument("--budget-s", type=float, default=6, help="seconds per contender and shape")
    parser.add_argument("--cap-s", type=float, default=20, help="slower than this: no longer shapes")
    parser.add_argument("--quick", action="store_true", help="starter geometry, 64 and 256 tokens, budget 1 s")
    parser.add_argument("--no-write", action="store_true", help="print, and leave docs/ as it is")
    options = parser.parse_args(arguments)
    if options.quick:
        options.geometry, options.tokens = ["starter"], options.tokens or QUICK_TOKENS
        options.budget_s = min(options.budget_s, 1)
    return options


def _listed(known: Any) -> Any:
    def parsed(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} not among {', '.join(known)}")
        return chosen

    return parsed


def measure_geometry(
    geometry: Geometry, options: argparse.Namespace, *, native_bf16: bool
) -> tuple[dict[str, Any], list[Entry]]:
    """Prepare, find the machine's limit, then let the contenders take turns."""
    tokens = options.tokens or geometry.tokens
    shapes, special = shapes_of(tokens, mixed=not options.quick), read_special()
    needs = {RUNTIMES[name][3] if name in RUNTIMES else PEER_WORKERS[name][4] for name in options.contenders}
    needs -= set() if native_bf16 else {"bundle-bf16"}
    prepared = prepare(geometry, ROOT, needs, max((*geometry.tokens, *tokens)), say)
    logs = ROOT / "logs" / geometry.name
    rates, errors = product_rates(geometry, tokens, options, logs, native_bf16=native_bf16)
    chosen = contenders(options.contenders, prepared, special, options.threads, logs, native_bf16=native_bf16)
    entries = measure(chosen, shapes, special, Limits(budget_s=options.budget_s, cap_s=options.cap_s), say)
    measured = {
        "shapes": [described(geometry, shape) for shape in shapes],
        "limits": report.best_rates(rates),
        "products": rates,
        "product_errors": errors,
        "contenders": [recorded(entry) for entry in entries],
    }
    report.add_mfu(measured)
    return measured, entries


def product_rates(
    geometry: Geometry, tokens: tuple[int, ...], options: argparse.Namespace, logs: Path, *, native_bf16: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rates of matrix products in operations a second, and what could not be measured."""
    wanted = [LARGE_PRODUCT, *(product for length in tokens for product in products(geometry, length))]
    precisions = ["fp32", "int8", *(["bf16"] if native_bf16 else [])]
    request = {"products": wanted, "precisions": precisions, "seconds": 0.3, "threads": options.threads}
    command = [str(DEV), "-m", "loadtests.bench.workers.products"]
    try:
        worker = Worker(command, environment(options.threads), logs / "products.log")
        try:
            worker.wait_ready(60)
            reply = worker.ask(request, timeout_s=900)
        finally:
            worker.close()
    except WorkerFailed as failure:
        return [], [str(failure)]
    return reply["rates"], reply["errors"]


def described(geometry: Geometry, shape: Shape) -> dict[str, Any]:
    """Padding is no useful work."""
    work = sum(useful_flops(geometry, length) for length in shape.lengths)
    return {"label": shape.label, "lengths": shape.lengths, "useful_flops": work}


def recorded(entry: Entry) -> dict[str, Any]:
    contender = entry.contender
    named = {"name": contender.name, "title": contender.title, "precision": contender.precision}
    return named | {"detail": entry.detail, "reason": entry.reason, "cells": entry.cells}


def write(results: dict[str, Any], *, keep: bool) -> None:
    """Print the tables; with `keep`, write them, the record and the plot to docs/."""
    section = report.section(results)
    print(section, flush=True)
    record = RECORD if keep else ROOT / RECORD.name
    record.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if keep:
        DOCUMENT.write_text(report.with_section(DOCUMENT.read_text(encoding="utf-8"), section), encoding="utf-8")
    plot = PLOT if keep else ROOT / PLOT.name
    try:
        subprocess.run([PEERS, "-m", "loadtests.bench.plot", record, plot], check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no plot: {error}", file=sys.stderr)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
