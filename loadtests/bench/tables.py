"""Measurements in Markdown. Times are milliseconds for one call of the whole batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtests import report
from loadtests.bench.contenders import OURS, PRODUCTS
from loadtests.report import measured_on, milliseconds


def measured(part: Mapping[str, Any]) -> str:
    """Return the first sentences of a part's tables: on what, when, and with which versions."""
    versions = ", ".join(f"{name} {found}" for name, found in part.get("versions", {}).items())
    return (
        f"{measured_on(part['machine'])}, {part['threads']} threads each, on {part['created'][:10]}."
        f"{f' Our own engines use {versions}.' if versions else ''}"
        f"{' With few repetitions.' if part['effort'] != 'full' else ''}"
    )


def section(results: Mapping[str, Any]) -> str:
    """Return all tables, with what they were measured on."""
    lead = (
        f"{measured(results)} The same random weights and tokens for "
        "all, taking turns. Milliseconds for one sequence of so many tokens (a column of mixed lengths: for one padded "
        "batch): median ± half the distance from the 10th to the 90th percentile; in brackets the time as a multiple "
        "of ours, ONNX Runtime in fp32. The limit is the useful work of the two label logits at the rate of the "
        "fastest call of any matrix product here. The products alone are those of all layers, with their weights and "
        "nothing between them: what is left of a limit when the machine has other guests and weights come from memory."
    )
    parts = [lead]
    for name, geometry in results["geometries"].items():
        parts += [f"### Geometry {name}", table(geometry), notes(geometry)]
    return "\n\n".join(part for part in parts if part)


def table(geometry: Mapping[str, Any], baseline: str = OURS) -> str:
    """Return a row for each contender that was measured, and for each limit. baseline: what ratios are relative to."""
    labels = [shape["label"] for shape in geometry["shapes"]]
    ours: Mapping[str, Any] = next((c["cells"] for c in geometry["contenders"] if c["name"] == baseline), {})
    rows = [
        [contender["title"], *(cell_text(contender["cells"].get(label), ours.get(label)) for label in labels)]
        for contender in geometry["contenders"]
        if any("median_s" in cell for cell in contender["cells"].values())
    ]
    for limit in geometry.get("limits", []):
        title = f"the limit, {limit['precision']} ({limit['flops_per_s'] / 1e9:.0f} GFLOP/s, {limit['runtime']})"
        rows.append(
            [title, *(f"{shape['useful_flops'] / limit['flops_per_s'] * 1e3:.2f}" for shape in geometry["shapes"])]
        )
    return report.table(["contender", *labels], rows)


def cell_text(cell: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> str:
    """Return such as `12.3 ± 0.4 (2.1x)`; a dash if nothing was measured, which the notes explain."""
    if cell is None or "median_s" not in cell:
        return "-"
    spread = (cell["p90_s"] - cell["p10_s"]) / 2
    ratio = f" ({cell['median_s'] / ours['median_s']:.2f}x)" if ours and "median_s" in ours else ""
    return f"{milliseconds(cell['median_s'])} ± {milliseconds(spread)}{ratio}"


def notes(geometry: Mapping[str, Any], reference: str = "transformers' full head") -> str:
    """Return which contenders are missing and why, and how far their logits are from those of `reference`."""
    lines = []
    for contender in geometry["contenders"]:
        title, cells = contender["title"], contender["cells"]
        if contender["reason"]:
            lines.append(f"* {title}: {contender['reason']}")
        elif len(contender.get("detail", "").split()) > 2:  # beside precision and engine: versions
            title = f"{title} ({contender['detail']})"
        lines += [f"* {title} at {label}: {cell['note']}" for label, cell in cells.items() if "note" in cell]
        unchecked = [label for label, cell in cells.items() if cell.get("logits") and cell["difference"] is None]
        if unchecked:
            lines.append(f"* {title}: logits not compared at {', '.join(unchecked)}, no reference there")
        found = [cell["difference"] for cell in cells.values() if cell.get("difference") is not None]
        if found:
            lines.append(f"* {title}: logits at most {max(found):.1e} from {reference}")
    return "\n".join(lines)


def best_rates(rates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the fastest product of each precision: what the machine was seen to reach."""
    best: dict[str, dict[str, Any]] = {}
    for rate in rates:
        if rate["flops_per_s"] > best.get(rate["precision"], {"flops_per_s": 0})["flops_per_s"]:
            best[rate["precision"]] = dict(rate)
    return list(best.values())


def add_mfu(geometry: Mapping[str, Any]) -> None:
    """Add to each cell its useful work / time / best rate of its precision."""
    best = {limit["precision"]: limit["flops_per_s"] for limit in geometry["limits"]}
    for contender in geometry["contenders"]:
        of_shape = "products_flops" if contender["name"] == PRODUCTS else "useful_flops"
        work = {shape["label"]: shape[of_shape] for shape in geometry["shapes"]}
        for label, cell in contender["cells"].items():
            if "median_s" in cell and contender["precision"] in best:
                cell["mfu"] = work[label] / cell["median_s"] / best[contender["precision"]]
