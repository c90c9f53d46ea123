"""Measurements as JSON and as tables in Markdown. Times in ms for one call of the whole batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtests import markers

HEADING = "## The engines, side by side"
OURS = "ours-ort-fp32"


def section(results: Mapping[str, Any]) -> str:
    """All tables, with what they were measured on."""
    machine = results["machine"]
    lead = (
        f"Measured on {machine['cpu']} (family {machine['family']}, model {machine['model']}), {machine['cores']} "
        f"cores, {results['threads']} threads each. The same random weights and tokens for all, taking turns. "
        "Milliseconds for one reading of so many tokens (a column of mixed lengths: for one padded batch): median "
        "± half the distance from the 10th to the 90th percentile; in brackets the time as a multiple of ours, ONNX "
        "Runtime in fp32. The limit is the useful work of the two label logits at the best matrix-product rate "
        "measured here."
    )
    parts = [lead]
    for name, geometry in results["geometries"].items():
        parts += [f"### Geometry {name}", table(geometry), notes(geometry)]
    return "\n\n".join(part for part in parts if part)


def table(geometry: Mapping[str, Any]) -> str:
    labels = [shape["label"] for shape in geometry["shapes"]]
    lines = [f"| contender | {' | '.join(labels)} |", f"|---|{'---|' * len(labels)}"]
    ours = next((c["cells"] for c in geometry["contenders"] if c["name"] == OURS), {})
    for contender in geometry["contenders"]:
        if any("median_s" in cell for cell in contender["cells"].values()):
            cells = [cell_text(contender["cells"].get(label), ours.get(label)) for label in labels]
            lines.append(f"| {contender['title']} | {' | '.join(cells)} |")
    for limit in geometry["limits"]:
        title = f"the limit, {limit['precision']} ({limit['flops_per_s'] / 1e9:.0f} GFLOP/s, {limit['runtime']})"
        cells = [f"{shape['useful_flops'] / limit['flops_per_s'] * 1e3:.2f}" for shape in geometry["shapes"]]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell_text(cell: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> str:
    """Such as `12.3 ± 0.4 (2.1x)`; a dash where nothing was measured, which the notes explain."""
    if cell is None or "median_s" not in cell:
        return "-"
    spread = (cell["p90_s"] - cell["p10_s"]) / 2
    ratio = f" ({cell['median_s'] / ours['median_s']:.2f}x)" if ours and "median_s" in ours else ""
    return f"{milliseconds(cell['median_s'])} ± {milliseconds(spread)}{ratio}"


def milliseconds(seconds: float) -> str:
    """Three digits where it matters."""
    ms = seconds * 1e3
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def notes(geometry: Mapping[str, Any]) -> str:
    """Who is missing and why, and how far the logits are from the full head's."""
    lines = []
    for contender in geometry["contenders"]:
        if contender["reason"]:
            lines.append(f"* {contender['title']}: {contender['reason']}")
        lines += [f"* {contender['title']} at {label}: {cell['note']}" for label, cell in _noted(contender)]
        unchecked = [
            label for label, cell in contender["cells"].items() if cell.get("logits") and cell["difference"] is None
        ]
        if unchecked:
            lines.append(f"* {contender['title']}: logits not compared at {', '.join(unchecked)}, no reference there")
        found = [cell["difference"] for cell in contender["cells"].values() if cell.get("difference") is not None]
        if found:
            lines.append(f"* {contender['title']}: logits at most {max(found):.1e} from transformers' full head")
    return "\n".join(lines)


def with_section(document: str, text: str) -> str:
    """The document with `text` in the place of the last run's."""
    return markers.with_section(document, "bench", HEADING, text)


def best_rates(rates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fastest product of each precision: what the machine was seen to reach."""
    best: dict[str, dict[str, Any]] = {}
    for rate in rates:
        if rate["flops_per_s"] > best.get(rate["precision"], {"flops_per_s": 0})["flops_per_s"]:
            best[rate["precision"]] = dict(rate)
    return list(best.values())


def add_mfu(geometry: Mapping[str, Any]) -> None:
    """To each cell, useful work / time / best rate of its precision."""
    best = {limit["precision"]: limit["flops_per_s"] for limit in geometry["limits"]}
    work = {shape["label"]: shape["useful_flops"] for shape in geometry["shapes"]}
    for contender in geometry["contenders"]:
        for label, cell in contender["cells"].items():
            if "median_s" in cell and contender["precision"] in best:
                cell["mfu"] = work[label] / cell["median_s"] / best[contender["precision"]]


def _noted(contender: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(label, cell) for label, cell in contender["cells"].items() if "note" in cell]
