"""The part `accuracy`: accuracy against operations per decision, of the starter and of every variant that was trained.

Nothing is measured here. The starter's figures are those of its manifest, the variants' those of docs/experiments.md,
whose tables name three sets of pairs: the validation pairs, half of them, and pairs held out of training, which differ
from seed to seed. Operations are measured where the source has them, otherwise counted by `tinyrm.flops`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loadtests.bench.effort import Effort, Save
from loadtests.bench.shapes import GEOMETRIES, modernbert
from tinyrm.flops import Geometry, exact_flops, set_flops
from tinyrm.manifest import Manifest

EXPERIMENTS = Path("docs/experiments.md")
STARTER = Path("models/starter/manifest.json")
Pairs = Literal["validation", "half", "held out"]
# Held-out pairs have at most 600 characters; their tokens were not recorded.
ASSUMED = {"pair": 200, "response": 130}
SIZES = {
    "size-192": modernbert(vocab=16384, hidden=192, intermediate=288, layers=7, heads=3),
    "size-128": modernbert(vocab=16384, hidden=128, intermediate=192, layers=4, heads=2),
}
HELD_OUT = (
    "Cloze against heads",
    "DoRA against full tuning against LoRA",
    "Freezing depth",
    "Both orders against one",
    "Merged against balanced generalist",
    "Three sizes",
)
INTERVAL = re.compile(r"\**([0-9.]+)\** \(([0-9.]+) to ([0-9.]+)\)")
AROUND = re.compile(r"([0-9.]+)(?: ± ([0-9.]+))?")


@dataclass(frozen=True, slots=True)
class Point:
    """One model: its accuracy with the 95 % interval, in percent, and billions of operations for a decision.

    counted: whether the operations come from `tinyrm.flops`, not from a measurement.
    """

    name: str
    base: str
    reads: str
    pairs: Pairs
    accuracy: float
    low: float
    high: float
    gflops: float
    counted: bool


def run(_: Effort, save: Save) -> dict[str, Any]:
    """Collect all points."""
    results = {"points": [asdict(point) for point in collect(EXPERIMENTS.read_text(), STARTER.read_text())]}
    save(results)
    return results


def collect(experiments: str, manifest: str) -> list[Point]:
    """Return the points of a page of experiments and of the starter's manifest."""
    starter = Manifest.model_validate_json(manifest)
    evaluation: dict[str, Any] = json.loads(manifest)["evaluation"]
    found = evaluation["domains"]["all"]["accuracy"]
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    gflops = evaluation["cost"]["gflops_per_pair"]
    points = [Point("starter", "MiniLM", "set", "validation", value, low, high, gflops, counted=False)]
    for row in rows(section(experiments, "Learning from a teacher")):
        name, reads = row["model"], "pair" if row["reads"].startswith("pair") else "response"
        cost = float(row["GFLOPs a pair"])
        points.append(Point(name, "from scratch", reads, "validation", *interval(row["accuracy"]), cost, counted=False))
    points += halves(section(experiments, "Three ways to read"), starter.geometry)
    seen: set[str] = set()
    for heading in HELD_OUT:
        for row in rows(section(experiments, heading)):
            # Specialists are measured on pairs of their own domain.
            if row["recipe"] not in seen and not row["recipe"].startswith("specialist"):
                seen.add(row["recipe"])
                points.append(held_out(row))
    return points


def halves(text: str, minilm: Geometry) -> Iterator[Point]:
    """Yield what three ways to read learnt from one base, at the tokens of a decision that the tables name."""
    for table in tables(text):
        if "tokens" not in table[0]:
            continue
        of_alone = next(int(row["tokens"]) for row in table if row["recipe"].endswith("pointwise"))
        of_set = next(int(row["tokens"]) for row in table if "set" in row["recipe"])
        # Alone, the prompt counts twice: prompt + response, twice, against prompt + two responses.
        prompt = of_alone - of_set
        response = of_alone // 2 - prompt
        for row in table:
            scratch, recipe = row["recipe"].startswith("scratch"), row["recipe"].removeprefix("scratch-")
            geometry = GEOMETRIES["small"] if scratch else minilm
            reads = {"cloze": "pair", "pointwise": "response"}.get(recipe, "set")
            # The mean of a response needs its last layer whole, [CLS] and a mask do not.
            at_mean = reads == "set" and not scratch and "mask" not in recipe.partition(",")[2]
            geometry = geometry.model_copy(update={"reads_mean": at_mean})
            if reads == "set":
                others = {"set-none": "none", "set-masks": "masks"}.get(recipe.partition(",")[0], "tokens")
                layers = 0 if others == "none" else 1 if "last" in recipe else len(geometry.global_layers)
                flops = set_flops(geometry, prompt, [response] * 2, others=others, crossing_layers=layers)  # type: ignore[arg-type]
            else:
                flops = 2 * exact_flops(geometry, int(row["tokens"]) // 2)
            base = "from scratch" if scratch else "MiniLM"
            yield Point(row["recipe"], base, reads, "half", *interval(row["all"]), flops / 1e9, counted=True)


def held_out(row: dict[str, str]) -> Point:
    """Return a variant on pairs that its training held out; without an interval if it had one seed."""
    match = AROUND.fullmatch(row["accuracy"])
    if not match:
        raise ValueError(f"{row['recipe']} has no accuracy: {row['accuracy']!r}")
    value, around = float(match[1]), float(match[2] or 0)
    reads = "response" if row["recipe"] in ("pointwise", "tokens") else "pair"
    geometry = SIZES.get(row["recipe"], GEOMETRIES["small"])
    gflops = 2 * exact_flops(geometry, ASSUMED[reads]) / 1e9
    return Point(
        row["recipe"], "from scratch", reads, "held out", value, value - around, value + around, gflops, counted=True
    )


def section(text: str, heading: str) -> str:
    """Return what stands between a heading of the second level and the next. Raises ValueError without it."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f"the experiments have no section {heading!r}")
    return found[1]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Return the Markdown tables of a text: a dictionary for each row, by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def rows(text: str) -> list[dict[str, str]]:
    """Return the rows of the tables that begin with a recipe or a model, and have an accuracy."""
    return [row for table in tables(text) for row in table if "accuracy" in row]


def interval(cell: str) -> tuple[float, float, float]:
    match = INTERVAL.fullmatch(cell)
    if not match:
        raise ValueError(f"no interval: {cell!r}")
    return float(match[1]), float(match[2]), float(match[3])
