"""The part `engines`: ids in, label logits out, every engine at every length, and the limit of this machine."""

from pathlib import Path
from typing import Any

from loadtests import machine
from loadtests.bench import tables
from loadtests.bench.contenders import CONTENDERS, DEV, Contender, environment, missing
from loadtests.bench.effort import Effort, Save
from loadtests.bench.harness import Entry, measure, parity_failures
from loadtests.bench.output import ROOT, print_line
from loadtests.bench.prepare import Prepared, prepare
from loadtests.bench.process import Worker, WorkerFailed
from loadtests.bench.shapes import GEOMETRIES, TOKENS, Special, products, shapes
from loadtests.bench.workers import products_alone
from tinyrm.engines import ENGINES
from tinyrm.flops import exact_flops

LARGE_PRODUCT = (2048, 2048, 2048)
NO_BF16 = "not measured: no bf16 (this CPU has neither avx512_bf16 nor amx_bf16)"


def run(effort: Effort, save: Save) -> dict[str, Any]:
    """Measure each geometry. "parity": where an engine in fp32 is too far from the full head."""
    results: dict[str, Any] = {"geometries": {}, "parity": []}
    for name in effort.geometries:
        print_line(f"geometry {name}")
        measured, entries = measure_geometry(name, effort)
        results["geometries"][name] = measured
        results["parity"] += [f"{name}: {failure} from the full head" for failure in parity_failures(entries)]
        save(results)
    return results


def prepare_all(effort: Effort) -> list[str]:
    """Make the models of all geometries. Return why some could not be made."""
    native_bf16 = machine.has_native_bf16(machine.read_cpuinfo())
    return [
        f"{name} {artifact}: {reason}"
        for name in effort.geometries
        for artifact, reason in prepare_geometry(name, effort, chosen(effort), native_bf16=native_bf16).reasons.items()
    ]


def chosen(effort: Effort) -> list[Contender]:
    return [CONTENDERS[one] for one in CONTENDERS if one in (effort.contenders or CONTENDERS)]


def prepare_geometry(name: str, effort: Effort, contenders: list[Contender], *, native_bf16: bool) -> Prepared:
    needs = {one.artifact for one in contenders if one.python.exists() and (native_bf16 or one.precision != "bf16")}
    return prepare(name, ROOT, wanted=needs, max_tokens=max((*TOKENS[name], *effort.tokens)), log=print_line)


def measure_geometry(name: str, effort: Effort) -> tuple[dict[str, Any], list[Entry]]:
    """Prepare, measure the limit of the machine, then run the contenders in turns."""
    native_bf16 = machine.has_native_bf16(machine.read_cpuinfo())
    geometry, contenders = GEOMETRIES[name], chosen(effort)
    tokens = effort.tokens or TOKENS[name]
    special, logs = Special.of(geometry.vocab), ROOT / "logs" / name
    prepared = prepare_geometry(name, effort, contenders, native_bf16=native_bf16)
    wanted = [LARGE_PRODUCT, *(product for length in tokens for product in products(geometry, length))]
    rates, errors = product_rates(wanted, ["fp32", "int8", *(["bf16"] if native_bf16 else [])], effort.threads, logs)
    entries = [entry(one, prepared, special, effort.threads, logs, native_bf16=native_bf16) for one in contenders]
    chosen_shapes = shapes(tokens, mixed=effort.mixed)
    requests = {shape.label: shape.request(special) for shape in chosen_shapes}
    measure(entries, requests, effort.limits, print_line)
    measured: dict[str, Any] = {
        "shapes": [
            {
                "label": shape.label,
                "lengths": shape.lengths,
                # Padding is not useful work.
                "useful_flops": sum(exact_flops(geometry, length) for length in shape.lengths),
                "products_flops": products_alone.flops(geometry, sum(shape.lengths)),
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
