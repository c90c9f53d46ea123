"""The cross-encoders in Markdown, with the ratios that are promised."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtests import report
from loadtests.bench import tables
from loadtests.bench.texts import MIXED
from loadtests.report import Target

REFERENCE_TITLE = "sentence-transformers on torch"
# Our contender, and those of the same kind that it is compared with.
LIBRARIES = (
    "ours-ort",
    ("ours-openvino", "sentence-torch", "sentence-onnx", "sentence-openvino", "fastembed", "flashrank"),
)
SERVERS = ("ours-http", ("infinity",))
TITLES = {
    "minilm": "MiniLM-L6's sizes: BERT, 6 layers, hidden 384, 1,024 positions",
    "modernbert": "A small ModernBERT: 7 layers, hidden 256",
}


def section(results: Mapping[str, Any]) -> str:
    """Return all tables, with what they were measured on."""
    lead = (
        f"{tables.measured(results)} One cross-encoder with random weights, "
        "one prompt, and responses that make sequences of so many tokens with it; texts in, scores out, the same texts "
        f"for all, taking turns. `{MIXED}`: 64 lengths from 64 to 1,024 tokens, evenly spaced on a logarithmic scale, "
        "in one call. Milliseconds for one call: median ± half the distance from the 10th to the 90th percentile; in "
        "brackets the time as a multiple of ours. Each library has its default settings, and the threads named above. "
        "A contender whose scores are more than 0.001 from those of sentence-transformers on torch is not listed."
    )
    parts = [lead]
    for name, geometry in results["geometries"].items():
        parts += [f"### {TITLES[name]}"]
        parts += [tables.table(only(geometry, (ours, *others)), ours) for ours, others in (LIBRARIES, SERVERS)]
        parts += ["\n".join(map(report.sentence, targets(geometry))), tables.notes(geometry, REFERENCE_TITLE)]
    return "\n\n".join(part for part in parts if part)


def only(geometry: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the measurements of these contenders, in this order."""
    by_name = {contender["name"]: contender for contender in geometry["contenders"]}
    return {**geometry, "contenders": [by_name[name] for name in names if name in by_name]}


def targets(geometry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how many times faster ours is than the fastest other, at each length, against what is promised."""
    cells = {contender["name"]: contender["cells"] for contender in geometry["contenders"]}
    found = []
    for kind, ours, others in (
        ("library", ("ours-ort", "ours-openvino"), LIBRARIES[1][1:]),
        ("server", ("ours-http",), SERVERS[1]),
    ):
        for shape in geometry["shapes"]:
            label = shape["label"]
            best_other, best_ours = fastest(cells, others, label), fastest(cells, ours, label)
            ratio = best_other / best_ours if best_other and best_ours else None
            limit = 1.5 if label == MIXED else 1.0
            what = f"{label} tokens, the fastest other {kind} over ours"
            found.append(Target(what, ratio, limit, "at least", "x").record())
    return found


def fastest(cells: Mapping[str, Mapping[str, Any]], names: Sequence[str], label: str) -> float | None:
    """Return the smallest median in seconds; None if none was measured."""
    medians = [cells[name][label]["median_s"] for name in names if "median_s" in cells.get(name, {}).get(label, {})]
    return min(medians, default=None)


def wrong(results: Mapping[str, Any]) -> list[str]:
    """Return where scores of ours are not those of the reference."""
    return [
        f"{name}: {contender['name']} at {label}: {cell['note']}"
        for name, geometry in results["geometries"].items()
        for contender in geometry["contenders"]
        if contender["name"].startswith("ours")
        for label, cell in contender["cells"].items()
        if cell.get("note", "").startswith("wrong")
    ]
