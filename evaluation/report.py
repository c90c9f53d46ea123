"""Results as Markdown and as one object that all benchmarks return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from evaluation.scoring import ScoredPair
from evaluation.statistics import Share, Summary, by_length

COLUMNS = (
    "domain",
    "pairs",
    "prompts",
    "accuracy",
    "one order",
    "swap consistency",
    "length heuristic",
    "NLL",
    "Brier",
    "ECE",
)
ORDER_COLUMNS = (
    "pairs of",
    "accuracy",
    "chosen first",
    "chosen second",
    "worth of standing first",
    "its size",
    "swap consistency",
)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a benchmark.

    markdown: its tables.
    figures: the same for machines, as JSON values.
    headline: the one score it is known by.
    scored: every pair with its preference, for calibration and length.
    """

    benchmark: str
    markdown: str
    figures: dict[str, Any]
    headline: Share
    scored: list[ScoredPair] = field(repr=False)


def domain_table(summaries: Mapping[str, Summary]) -> str:
    """Return a table with a row for each domain; intervals are 95 %."""
    return table(
        COLUMNS,
        [
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
            for name, summary in summaries.items()
        ],
    )


def order_table(summaries: Mapping[str, Summary]) -> str:
    """Return the accuracy of each order alone, and what standing first is worth."""
    return table(
        ORDER_COLUMNS,
        [
            [
                name,
                f"{summary.accuracy.value:.1%}",
                f"{summary.accuracy_chosen_first:.1%}",
                f"{summary.accuracy_chosen_second:.1%}",
                f"{summary.position_margin:+.2f}",
                f"{summary.position_size:.2f}",
                f"{summary.swap_consistency.value:.1%}",
            ]
            for name, summary in summaries.items()
        ],
    )


def orders_and_length(scored: Sequence[ScoredPair]) -> tuple[str, dict[str, Any]]:
    """Return the effects of position and length, as Markdown and for machines."""
    summaries = by_length(scored)
    return order_table(summaries), {name: summary.model_dump() for name, summary in summaries.items()}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its cells as they are."""
    return tabulate(rows, columns, tablefmt="github", stralign=None, numalign=None, disable_numparse=True)
