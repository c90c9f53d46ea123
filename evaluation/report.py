"""Results as Markdown."""

from collections.abc import Mapping

from evaluation.statistics import Summary

COLUMNS = (
    "domain", "pairs", "prompts", "accuracy", "one order", "swap consistency", "length heuristic",
    "NLL", "Brier", "ECE",
)  # fmt: skip


def table(summaries: Mapping[str, Summary]) -> str:
    """One row for each domain; intervals are 95 %."""
    rows = [_row(name, summary) for name, summary in summaries.items()]
    return "\n".join([_line(COLUMNS), _line(["---"] * len(COLUMNS)), *rows])


def _row(name: str, summary: Summary) -> str:
    return _line(
        [
            name,
            str(summary.pairs),
            str(summary.prompts),
            str(summary.accuracy),
            str(summary.accuracy_one_order),
            str(summary.swap_consistency),
            f"{summary.length_heuristic:.1%}",
            f"{summary.negative_log_likelihood:.3f}",
            f"{summary.brier:.3f}",
            f"{summary.expected_calibration_error:.3f}",
        ]
    )


def _line(cells: "list[str] | tuple[str, ...]") -> str:
    return f"| {' | '.join(cells)} |"
