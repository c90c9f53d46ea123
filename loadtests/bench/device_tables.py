"""What a GPU was measured to do, beside what physics allows, in Markdown."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from loadtests import report
from loadtests.report import milliseconds
from tinyrm.flops import Geometry, exact_flops, full_head_flops, matrix_weights, unpruned_flops

WEIGHT_BYTES = 2  # bf16
# Pairs a second that a model of the card expects of an H200: products at 80 % of 790 TFLOP/s, attention at 300 TFLOP/s
# with windows rounded up to 256 keys, half of the traffic between operators in the open.
EXPECTED_ON_H200 = {
    ("base", 256): 7200,
    ("base", 512): 3450,
    ("base", 1024): 1600,
    ("base", 4096): 280,
    ("large", 256): 2700,
    ("large", 512): 1300,
    ("large", 1024): 620,
    ("large", 4096): 120,
}

Row = Mapping[str, Any]


def limits(name: str, geometry: Geometry, tokens: int, flops_per_s: float, bytes_per_s: float) -> dict[str, Any]:
    """Return what one sequence costs, and what rates allow.

    flops: all layers at every row; full_head_flops: with a masked LM's head everywhere; exact_flops: what the logits
    need, which is what our engines run.
    ceiling_pairs_per_s: of `exact_flops`. floor_s: of one sequence alone, which reads all weights.
    """
    exact = exact_flops(geometry, tokens)
    weights_s = WEIGHT_BYTES * matrix_weights(geometry) / bytes_per_s
    return {
        "flops": unpruned_flops(geometry, tokens),
        "full_head_flops": full_head_flops(geometry, tokens),
        "exact_flops": exact,
        "ceiling_pairs_per_s": flops_per_s / exact,
        "floor_s": max(exact / flops_per_s, weights_s),
        "expected_on_h200": EXPECTED_ON_H200.get((name, tokens)),
    }


def section(results: Mapping[str, Any]) -> str:
    """Return all tables, and what was not measured."""
    rows: list[Row] = results["rows"]
    parts = [lead(results)]
    for heading, found in (
        ("### Packed tokens, and every other engine, in batches", throughput(rows, results)),
        ("### One sequence alone, milliseconds", latency(rows)),
        ("### Tokens of a step", steps(rows)),
        ("### Products of a layer, in a whole step", products(rows)),
        ("### Tokens that only fill a step", filling(rows)),
        ("### Start, memory", others(rows)),
        ("### Parity", parity(rows)),
        ("### Not measured", "\n".join(missing(rows))),
    ):
        if found:
            parts += [heading, found]
    return "\n\n".join(parts)


def lead(results: Mapping[str, Any]) -> str:
    device = results["device"]
    rates = next((row for row in results["rows"] if row["what"] == "rates"), None)
    text = f"{device['name']}, torch {device['torch']}, CUDA {device['cuda'] or 'none'}, {results['precision']}."
    if rates is None:
        return text
    text += (
        f" Measured: {tera(rates['flops_per_s'])} TFLOP/s in a large product of random matrices, "
        f"{tera(rates['bytes_per_s'])} TB/s in a copy."
    )
    if device["sheet_flops_per_s"]:
        text += (
            f" Data sheet: {tera(device['sheet_flops_per_s'])} TFLOP/s dense, {tera(device['sheet_bytes_per_s'])} TB/s."
        )
    return text + (
        " A pair is one sequence. The ceiling and the shares count the operations that the logits need, at the "
        "measured rate; `F` counts all layers at every row, `full head` also a masked LM's head everywhere."
    )


def throughput(rows: Sequence[Row], results: Mapping[str, Any]) -> str:
    rate = next((row["flops_per_s"] for row in rows if row["what"] == "rates"), None)
    sheet = results["device"]["sheet_flops_per_s"]
    lines = [
        [
            row["model"],
            f"{row['tokens']:,}",
            row["engine"],
            f"{row['flops'] / 1e9:,.1f}",
            f"{row['full_head_flops'] / 1e9:,.1f}",
            f"{row['exact_flops'] / 1e9:,.1f}",
            f"{row['ceiling_pairs_per_s']:,.0f}",
            f"{row['expected_on_h200']:,}" if row["expected_on_h200"] else "-",
            f"{row['pairs_per_s']:,.0f}",
            f"{row['tokens_per_s'] / 1e6:.3g}",
            percent(row["pairs_per_s"] * row["exact_flops"], rate),
            percent(row["pairs_per_s"] * row["exact_flops"], sheet),
        ]
        for row in of(rows, "throughput")
    ]
    head = ["model", "tokens", "engine", "F, GFLOP", "full head", "needed", "ceiling, pairs/s", "expected on an H200"]
    return table([*head, "measured", "M tokens/s", "of the measured rate", "of the data sheet"], lines)


def latency(rows: Sequence[Row]) -> str:
    """Return a line for each model and engine, a column for each length."""
    found = list(of(rows, "latency"))
    lengths = sorted({row["tokens"] for row in found})
    lines = []
    for model in dict.fromkeys(row["model"] for row in found):
        cells = {(row["engine"], row["tokens"]): row for row in found if row["model"] == model}
        floors = {tokens: row["floor_s"] for (_, tokens), row in cells.items()}
        lines.append([model, "the limit", *(milliseconds(floors.get(tokens)) for tokens in lengths)])
        for engine in dict.fromkeys(engine for engine, _ in cells):
            times = (cells.get((engine, tokens)) for tokens in lengths)
            lines.append([model, engine, *(milliseconds(row["median_s"]) if row else "-" for row in times)])
    return table(["model", "engine", *(f"{tokens:,}" for tokens in lengths)], lines)


def steps(rows: Sequence[Row]) -> str:
    lines = [
        [row["model"], f"{row['step_tokens']:,}", f"{row['tokens']:,}", f"{row['tokens_per_s'] / 1e6:.3g}"]
        for row in of(rows, "step")
    ]
    return table(["model", "tokens of a step", "of a sequence", "M tokens/s"], lines)


def products(rows: Sequence[Row]) -> str:
    rate = next((row["flops_per_s"] for row in rows if row["what"] == "rates"), None)
    lines = [
        [
            row["model"],
            row["product"],
            " x ".join(map(str, row["shape"])),
            tera(row["rate"]),
            percent(row["rate"], rate),
        ]
        for row in of(rows, "product")
    ]
    return table(["model", "product", "rows x inner x columns", "TFLOP/s", "of the measured rate"], lines)


def filling(rows: Sequence[Row]) -> str:
    lines = [[row["model"], row["waiting"], f"{100 * row['share']:.0f} %"] for row in of(rows, "filling")]
    return table(["model", "sequences in a step", "tokens that fill"], lines)


def others(rows: Sequence[Row]) -> str:
    lines = [
        *([row["model"], row["engine"], "bundle exported", f"{row['seconds']:.0f} s"] for row in of(rows, "export")),
        *([row["model"], row["engine"], "first reply", f"{row['seconds']:.0f} s"] for row in of(rows, "start")),
        *(
            [row["model"], row["engine"], "peak memory", f"{row['bytes'] / 2**30:.2f} GiB"]
            for row in of(rows, "memory")
        ),
    ]
    return table(["model", "engine", "what", "measured"], lines)


def parity(rows: Sequence[Row]) -> str:
    lines = [
        [row["model"], row["engine"], row["what"], f"{row['difference']:.1e}", f"{row['allowed']:.1e}", verdict(row)]
        for row in rows
        if "right" in row
    ]
    return table(["model", "engine", "what", "relative difference", "allowed", ""], lines)


def verdict(row: Row) -> str:
    return "right" if row["right"] else "**wrong**"


def missing(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        if "reason" in row:
            yield f"* {row['model']}, {row.get('engine', row['what'])}: {row['reason']}"


def of(rows: Iterable[Row], what: str) -> Iterator[Row]:
    return (row for row in rows if row["what"] == what and "reason" not in row)


def table(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    return report.table(heads, lines) if lines else ""


def line(row: Row) -> str:
    """Return a row as it is printed while the others are measured."""
    words = [str(row[name]) for name in ("model", "engine", "what", "tokens", "step_tokens", "product") if name in row]
    figures = {
        name: f"{value:.4g}"
        for name, value in row.items()
        if isinstance(value, float)
        and name in ("pairs_per_s", "median_s", "difference", "seconds", "rate", "flops_per_s")
    }
    return "  ".join([*words, *(f"{name} {value}" for name, value in figures.items()), row.get("reason", "")]).rstrip()


def tera(value: float) -> str:
    return f"{value / 1e12:.3g}"


def percent(value: float, of_value: float | None) -> str:
    return f"{100 * value / of_value:.0f} %" if of_value else "-"
