"""python -m loadtests.bench: every engine at every length, side by side, and the limit of this machine."""

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from loadtests import machine
from loadtests.bench import tables
from loadtests.bench.contenders import CONTENDERS, DEV, Contender, environment, missing
from loadtests.bench.harness import Entry, Limits, measure, parity_failures
from loadtests.bench.output import ROOT, print_line, write
from loadtests.bench.prepare import Prepared, prepare
from loadtests.bench.process import Worker, WorkerFailed
from loadtests.bench.shapes import GEOMETRIES, TOKENS, Special, products, shapes
from tinyrm.command_line import parse
from tinyrm.engines import ENGINES
from tinyrm.flops import exact_flops

LARGE_PRODUCT = (2048, 2048, 2048)
NO_BF16 = "not measured: no bf16 (this CPU has neither avx512_bf16 nor amx_bf16)"

GeometryName = Literal["small", "base", "large"]
ContenderName = Literal[
    "ours-ort-fp32",
    "ours-ort-int8",
    "ours-ov-fp32",
    "ours-ov-bf16",
    "plain-ort-fp32",
    "transformers-fp32",
    "transformers-bf16",
    "optimum-ort-fp32",
]


@dataclass(frozen=True)
class Options:
    """Time every engine at every length, side by side, and the matrix products that bound them."""

    geometry: tuple[GeometryName, ...] = get_args(GeometryName)
    """Sizes to measure."""
    tokens: tuple[int, ...] = ()
    """Lengths; by default those of each geometry."""
    contenders: tuple[ContenderName, ...] = get_args(ContenderName)
    """Engines to measure."""
    threads: int = field(default_factory=machine.usable_cores)
    """Threads of each contender; by default the cores of this machine."""
    budget_s: float = 6
    """Seconds for each contender and shape."""
    cap_s: float = 20
    """A contender that needs longer for one call skips longer shapes."""
    quick: bool = False
    """The small geometry, 64 and 256 tokens, a budget of at most 1 s."""
    no_write: bool = False
    """Print the tables, and leave the document as it is; the numbers go to runs/bench/bench.json."""
    document: Path = Path("docs/performance.md")
    """Markdown file to write the section into; numbers and plot go to results/ and images/ beside it."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m loadtests.bench")
    cpuinfo = machine.read_cpuinfo()
    results: dict[str, Any] = {
        "machine": machine.describe(cpuinfo),
        "threads": options.threads,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "geometries": {},
    }
    failures: list[str] = []
    geometries: tuple[GeometryName, ...] = ("small",) if options.quick else options.geometry
    for name in geometries:
        print(f"geometry {name}", flush=True)
        measured, entries = measure_geometry(name, options, native_bf16=machine.has_native_bf16(cpuinfo))
        results["geometries"][name] = measured
        failures += [f"{name}: {failure}" for failure in parity_failures(entries)]
        results["parity_failures"] = failures
        # After each geometry: a run takes hours, and an interrupted one has results too.
        write(results, "bench", tables.HEADING, tables.section(results), None if options.no_write else options.document)
    for failure in failures:
        print(f"parity failed, {failure} from the full head", file=sys.stderr)
    return 1 if failures else 0


def measure_geometry(name: str, options: Options, *, native_bf16: bool) -> tuple[dict[str, Any], list[Entry]]:
    """Prepare, measure the limit of the machine, then run the contenders in turns."""
    geometry = GEOMETRIES[name]
    tokens = options.tokens or ((64, 256) if options.quick else TOKENS[name])
    budget_s = min(options.budget_s, 1) if options.quick else options.budget_s
    special, logs = Special.of(geometry.vocab), ROOT / "logs" / name
    chosen = [CONTENDERS[one] for one in CONTENDERS if one in options.contenders]
    needs = {one.artifact for one in chosen if native_bf16 or one.precision != "bf16"}
    prepared = prepare(name, ROOT, wanted=needs, max_tokens=max((*TOKENS[name], *tokens)), log=print_line)
    wanted = [LARGE_PRODUCT, *(product for length in tokens for product in products(geometry, length))]
    rates, errors = product_rates(wanted, ["fp32", "int8", *(["bf16"] if native_bf16 else [])], options.threads, logs)
    entries = [entry(one, prepared, special, options.threads, logs, native_bf16=native_bf16) for one in chosen]
    chosen_shapes = shapes(tokens, mixed=not options.quick)
    requests = {shape.label: shape.request(special) for shape in chosen_shapes}
    measure(entries, requests, Limits(budget_s=budget_s, cap_s=options.cap_s), print_line)
    measured: dict[str, Any] = {
        "shapes": [
            {
                "label": shape.label,
                "lengths": shape.lengths,
                # Padding is not useful work.
                "useful_flops": sum(exact_flops(geometry, length) for length in shape.lengths),
            }
            for shape in chosen_shapes
        ],
        "limits": tables.best_rates(rates),
        "products": rates,
        "product_errors": errors,
        "contenders": [entry.record() for entry in entries],
    }
    tables.add_mfu(measured)
    return measured, entries


def entry(
    contender: Contender, prepared: Prepared, special: Special, threads: int, logs: Path, *, native_bf16: bool
) -> Entry:
    """Return a contender with its command, and the reason if it cannot start."""
    command = contender.command(prepared.paths[contender.artifact], threads)
    if contender.runner not in ENGINES:
        command += ["--mask", str(special.mask), "--labels", *map(str, special.labels)]
    reason = missing(contender, prepared.reasons)
    if contender.precision == "bf16" and not native_bf16:
        reason = NO_BF16
    return Entry(contender, command, logs / f"{contender.name}.log", reason, environment(threads))


def product_rates(
    wanted: list[tuple[int, int, int]], precisions: list[str], threads: int, logs: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return rates of matrix products in operations a second, and what could not be measured."""
    request = {"products": wanted, "precisions": precisions, "seconds": 0.3, "threads": threads}
    command = [str(DEV), "-m", "loadtests.bench.workers.products"]
    try:
        worker = Worker(command, environment(threads), logs / "products.log")
        try:
            worker.wait_ready(60)
            reply = worker.send(request, timeout_s=900)
        finally:
            worker.close()
    except WorkerFailed as failure:
        return [], [str(failure)]
    return reply["rates"], reply["errors"]


if __name__ == "__main__":
    sys.exit(main())
