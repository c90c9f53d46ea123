"""Servers under callers, in Markdown: a table for each model, with every figure beside ours."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadtests import report
from loadtests.report import measured_on, milliseconds

HEADING = "## Servers, under 1, 8 and 64 callers"
OURS = "tinyrm"
MIB = 2**20
TITLES = {
    "minilm": "MiniLM-L6's sizes: BERT, 6 layers, hidden 384",
    "modernbert": "A small ModernBERT: 7 layers, hidden 256",
    "starter": "The starter, `/v1/compare`",
}


def section(results: Mapping[str, Any]) -> str:
    """Return all tables, with what they were measured on.

    results: what `callers.run` returns, and "machine".
    """
    lead = (
        f"{measured_on(results['machine'])}, {results['threads']} threads each. The same cross-encoder with random "
        "weights behind every server; each request is one query and one document of 20 to 1,024 tokens (lognormal, "
        "median 150), the same texts in the same order for all. A caller sends its next request after the reply to its "
        "last; the callers share the cores with the server. One server runs at a time, in turns; medians over the "
        "rounds, in brackets the lowest and the highest. Lost: requests without a right reply (a score within 0.001 of "
        "sentence-transformers' own). Memory: proportional set size of all its processes, at the end and at its peak. "
        "CPU: seconds of all its processes for 1,000 pairs. Each server has its default settings, and the threads "
        "named above."
    )
    parts = [lead]
    for model in dict.fromkeys(row["model"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["model"] == model]
        parts += [f"### {TITLES[model]}", table(rows)]
    parts += ["\n".join(map(report.sentence, results["targets"])), "\n".join(notes(results))]
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each number of callers and server, callers first."""
    ours = {row["callers"]: row for row in rows if row["server"] == OURS}
    head = ["callers", "server", "pairs/s", "ours is", "p50 ms", "p99 ms", "lost", "MiB", "peak", "CPU s"]
    lines = [
        [
            row["callers"],
            row["title"],
            spread(row["pairs_per_s"], number),
            times(ratio(ours.get(row["callers"]), row)),
            spread(row["p50_s"], milliseconds),
            spread(row["p99_s"], milliseconds),
            row["lost"],
            number(row["pss_end_bytes"]["median"] / MIB),
            number(row["pss_peak_bytes"]["median"] / MIB),
            number(row["cpu_s_per_1000"]["median"]),
        ]
        for row in sorted(rows, key=lambda row: row["callers"])
    ]
    return report.table(head, lines)


def ratio(ours: Mapping[str, Any] | None, other: Mapping[str, Any]) -> float | None:
    """Return our pairs a second over the other's; None if either has none."""
    if not ours or not ours["pairs_per_s"] or not other["pairs_per_s"]["median"]:
        return None
    return float(ours["pairs_per_s"]["median"] / other["pairs_per_s"]["median"])


def notes(results: Mapping[str, Any]) -> Iterator[str]:
    """Return how far the scores are from the reference, how requests were lost, and what was not measured."""
    for row in results["rows"]:
        if row["outcomes"]:
            found = ", ".join(f"{count} x {what}" for what, count in row["outcomes"].items())
            yield f"* {TITLES[row['model']]}, {row['title']}, {row['callers']} callers: {found}"
        if row["difference"] is not None and row["callers"] == max(row["callers"] for row in results["rows"]):
            yield f"* {TITLES[row['model']]}, {row['title']}: scores at most {row['difference']:.1e} from the reference"
    yield from (f"* {note}" for note in results["notes"])


def spread(values: Mapping[str, float] | None, text: Any) -> str:
    """Return such as `31.2 (30.9-31.4)`; the median alone where all rounds agree on it."""
    if values is None:
        return "-"
    low, median, high = (text(values[name]) for name in ("low", "median", "high"))
    return median if low == high else f"{median} ({low}-{high})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
