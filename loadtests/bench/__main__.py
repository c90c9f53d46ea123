"""python -m loadtests.bench: TinyRM beside other engines, libraries and servers, into docs/performance.md."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from loadtests import machine
from loadtests.bench import accuracy, callers, cross_encoders, engines, page, ranking
from loadtests.bench.contenders import CONTENDERS
from loadtests.bench.cross_encoders import ModelName
from loadtests.bench.effort import Effort, Save
from loadtests.bench.harness import Limits
from loadtests.bench.output import ROOT, Record, draw, header, print_line
from tinyrm.command_line import parse

PartName = Literal["engines", "cross-encoders", "ranking", "callers", "accuracy"]
GeometryName = Literal["small", "base", "large"]

FULL = Limits(budget_s=6, cap_s=20)
BRIEF = Limits(budget_s=1.5, cap_s=6, min_samples=2, rounds=3)
QUICK = Limits(budget_s=0.5, cap_s=2, min_samples=2, rounds=2)


@dataclass(frozen=True)
class Options:
    """Measure TinyRM beside others, and write the page, its tables and its pictures.

    Hours; `--brief` takes about 30 minutes on two cores, `--quick` about 6, and both longer where models must be made
    first.
    """

    only: tuple[PartName, ...] = get_args(PartName)
    """Parts to measure; the others stay in the results as they are."""
    quick: bool = False
    """The small geometry at 64 and 256 tokens, up to 8 responses, few repetitions."""
    brief: bool = False
    """The small and the base geometry at all lengths, few repetitions, only the smaller cross-encoder."""
    prepare: bool = False
    """Make the models that are compared, and stop."""
    geometry: tuple[GeometryName, ...] = ()
    """Sizes of the part `engines`."""
    model: tuple[ModelName, ...] = ()
    """Cross-encoders: MiniLM-L6's sizes on BERT, and a small ModernBERT."""
    tokens: tuple[int, ...] = ()
    """Lengths; by default those of each size."""
    responses: tuple[int, ...] = ()
    """Sizes of a group in the part `ranking`."""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    """Engines of the part `engines`."""
    threads: int = field(default_factory=machine.usable_cores)
    """Threads of each contender; by default the cores of this machine."""
    budget_s: float = 0
    """Seconds for each contender and length; 0 for the default."""
    cap_s: float = 0
    """A contender that needs longer for one call skips longer texts; 0 for the default."""
    device: bool = False
    """Measure the engines for GPUs on the card of this machine instead; its own options: --device --help."""
    no_write: bool = False
    """Leave docs/ as it is: pages, numbers and pictures go to runs/bench/docs."""
    docs: Path = Path("docs")
    """Folder of performance.md, performance-tables.md, results/ and images/."""


def effort_of(options: Options) -> Effort:
    """Return how much the options measure."""
    threads = options.threads
    if options.quick:
        effort = Effort("quick", threads, ("small",), ("minilm",), QUICK, (64, 256), responses=(2, 4, 8), mixed=False)
    elif options.brief:
        effort = Effort("brief", threads, ("small", "base"), ("minilm",), BRIEF)
    else:
        effort = Effort("full", threads, get_args(GeometryName), get_args(ModelName), FULL)
    limits = replace(
        effort.limits,
        budget_s=options.budget_s or effort.limits.budget_s,
        cap_s=options.cap_s or effort.limits.cap_s,
    )
    return replace(
        effort,
        geometries=options.geometry or effort.geometries,
        models=options.model or effort.models,
        tokens=options.tokens or effort.tokens,
        responses=options.responses or effort.responses,
        contenders=options.contenders,
        limits=limits,
    )


def run_callers(effort: Effort, _: Save) -> Mapping[str, Any]:
    results = callers.run(callers.EXTENTS[effort.name], effort.threads)
    return {**results, "parity": results["failures"]}


# Each returns its results; "parity" lists scores that are not those of the reference.
PARTS: Mapping[PartName, Callable[[Effort, Save], Mapping[str, Any]]] = {
    "engines": engines.run,
    "cross-encoders": cross_encoders.run,
    "ranking": ranking.run,
    "callers": run_callers,
    "accuracy": accuracy.run,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts one after the other. Return 1 if a score is not that of the reference, or a part failed."""
    words = sys.argv[1:] if arguments is None else arguments
    if "--device" in words:
        from loadtests.bench import device

        return device.main(words)
    options = parse(Options, arguments, prog="python -m loadtests.bench")
    effort = effort_of(options)
    if options.prepare:
        return prepare(effort)
    docs = ROOT / "docs" if options.no_write else options.docs
    record = Record.open(docs / "results" / "bench.json")
    failures: list[str] = []
    for name in options.only:
        started = time.monotonic()
        print_line(f"part {name}")
        measured_on = header(effort.threads, effort.name)

        def save(results: Mapping[str, Any], name: str = name, on: Mapping[str, Any] = measured_on) -> None:
            record.put(name, on, results)

        try:
            results = PARTS[name](effort, save)
        except Exception as error:  # noqa: BLE001  # the other parts are measured all the same
            failures.append(f"{name} failed: {type(error).__name__}: {error}")
            continue
        record.put(name, {**measured_on, "seconds": round(time.monotonic() - started)}, results)
        failures += [f"parity failed, {name}: {failure}" for failure in results.get("parity", [])]
    page.write(record.parts, docs)
    draw(docs)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def prepare(effort: Effort) -> int:
    """Make all models. Return 1 if one cannot be made."""
    reasons = [*engines.prepare_all(effort), *cross_encoders.prepare_all(effort), *ranking.prepare_all()]
    for reason in reasons:
        print(reason, file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
