"""The cross-encoders and the groups in Markdown, with the ratios that are promised."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadtests import report
from loadtests.bench import tables
from loadtests.bench.groups import RANKINGS, SAMPLES
from loadtests.bench.texts import MIXED
from loadtests.report import Target, measured_on

HEADING = "## Cross-encoders, beside other libraries and servers"
REFERENCE_TITLE = "sentence-transformers on torch"
# Our contender, and those of the same kind that it is compared with.
LIBRARIES = ("ours-ort", ("ours-openvino", "sentence-torch", "sentence-onnx", "sentence-openvino"))
SERVERS = ("ours-http", ("infinity",))
TITLES = {
    "minilm": "MiniLM-L6's sizes: BERT, 6 layers, hidden 384, 1,024 positions",
    "modernbert": "A small ModernBERT: 7 layers, hidden 256",
}


def section(results: Mapping[str, Any]) -> str:
    """Return all tables, with what they were measured on."""
    lead = (
        f"{measured_on(results['machine'])}, {results['threads']} threads each. One cross-encoder with random weights, "
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
    if groups := results.get("groups"):
        parts += ["### A group of 16 responses of 200 tokens", *group_parts(groups)]
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


def group_parts(groups: Mapping[str, Any]) -> Iterator[str]:
    if "reason" in groups:
        yield f"Not measured: {groups['reason']}"
        return
    cells = group_cells(groups)
    ratios = [
        [what, *(tables.cell_text(cells.get(f"{reads}-{name}"), None) for reads in ("pair", "response")), times(ratio)]
        for name, (what, *_) in RANKINGS.items()
        for ratio in [over(cells, f"pair-{name}", f"response-{name}")]
    ]
    yield report.table(["ranking of the group", "pair by pair", "response by response", "ratio"], ratios)
    yield report.table(
        ["one sample", "time"],
        [[what, tables.cell_text(cells.get(name), None)] for name, (what, *_) in SAMPLES.items()],
    )
    yield "\n".join(map(report.sentence, group_targets(groups)))
    rows = [*groups["group"], *groups["sample"]]
    reasons = {row["title"]: row["reason"] or cells.get(row["name"], {}).get("note") for row in rows}
    yield "\n".join(f"* {title}: {reason}" for title, reason in reasons.items() if reason)


def group_targets(groups: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the time of pairs over that of single responses, and that of a sample over that of a score."""
    cells = group_cells(groups)
    found = [
        Target("engine time, pairs over responses", over(cells, "pair-engine", "response-engine"), 12, "at least", "x"),
        Target(
            "ranking over HTTP, pairs over responses", over(cells, "pair-http", "response-http"), 12, "at least", "x"
        ),
        Target("OpenRLHF's sample over `/v1/score`", over(cells, "openrlhf", "score"), 1.1, "at most", "x"),
    ]
    return [target.record() for target in found]


def group_cells(groups: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the one cell of each contender."""
    return {row["name"]: cell for row in (*groups["group"], *groups["sample"]) for cell in row["cells"].values()}


def over(cells: Mapping[str, Mapping[str, Any]], name: str, other: str) -> float | None:
    """Return the ratio of two medians; None if one was not measured."""
    median, other_median = (cells.get(one, {}).get("median_s") for one in (name, other))
    return median / other_median if median and other_median else None


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x"


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
