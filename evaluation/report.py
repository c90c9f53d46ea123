"""Results as Markdown and as one object that all benchmarks return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from evaluation.scoring import ScoredPair
from evaluation.statistics import Calibration, Share, Summary, by_length
from evaluation.target import Cost

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
    figures: the same as JSON values.
    headline: its main score.
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
    """Return a table of the accuracy of each order alone, and of the effect of the first place."""
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


def cost_table(cost: Cost) -> str:
    """Return a table of what one decided pair costs."""
    columns = ("pairs read", "tokens per pair", "GFLOPs per pair, exact", "by the paper's formula", "pairs per second")
    cells = [
        str(cost.pairs),
        f"{cost.tokens_per_pair:.0f}",
        f"{cost.gflops_per_pair:.3g}",
        "unknown" if cost.paper_gflops_per_pair is None else f"{cost.paper_gflops_per_pair:.3g}",
        f"{cost.pairs_per_second:.1f}",
    ]
    return table(columns, [cells])


def calibration_table(calibration: Mapping[str, Calibration]) -> str:
    """Return a table of the calibration before and after a fit."""
    rows = [
        [
            name,
            f"{c.temperature:.3f}",
            f"{c.negative_log_likelihood:.3f}",
            f"{c.brier:.3f}",
            f"{c.expected_calibration_error:.3f}",
        ]
        for name, c in calibration.items()
    ]
    return table(("temperature fitted on held-out pairs", "T", "NLL", "Brier", "ECE"), rows)


def orders_and_length(scored: Sequence[ScoredPair]) -> tuple[str, dict[str, Any]]:
    """Return the effects of position and length, as Markdown and as JSON values."""
    summaries = by_length(scored)
    return order_table(summaries), {name: summary.model_dump() for name, summary in summaries.items()}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its cells as they are."""
    return tabulate(rows, columns, tablefmt="github", stralign=None, numalign=None, disable_numparse=True)
