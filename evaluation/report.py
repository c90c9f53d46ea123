"""Results as Markdown and as one object that all benchmarks return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from evaluation.scoring import ScoredPair
from evaluation.statistics import LENGTH_TOLERANCE, Calibration, Estimate, Share, Summary, by_length
from evaluation.target import Cost

# What stands below a table of a model that scores responses, in place of the columns about orders.
NO_ORDERS = "Each response has one score: no order exists, and swap consistency is 100 % by construction."
MATCHED = f"Length-matched: the responses differ by at most {LENGTH_TOLERANCE:.0%} of the longer one's characters."


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a benchmark.

    markdown: its tables.
    figures: the same as JSON values.
    headline: its main score.
    estimates: the accuracy of each part of the benchmark, the main score last. Those of two models on the same data are
        drawn together, so that draws can be subtracted.
    scored: every pair with its preference, for calibration and length.
    """

    benchmark: str
    markdown: str
    figures: dict[str, Any]
    headline: Share
    estimates: Mapping[str, Estimate] = field(repr=False)
    scored: list[ScoredPair] = field(repr=False)


def domain_table(summaries: Mapping[str, Summary]) -> str:
    """Return a table with a row for each domain; intervals are 95 %."""
    rows = {
        name: {
            "pairs": str(summary.pairs),
            "prompts": str(summary.prompts),
            "accuracy": str(summary.accuracy),
            **of_orders(
                summary.orders,
                {"one order": str(summary.accuracy_one_order), "swap consistency": str(summary.swap_consistency)},
            ),
            "length heuristic": f"{summary.length_heuristic:.1%}",
            "points above it": str(summary.over_length_heuristic),
            "NLL": f"{summary.negative_log_likelihood:.3f}",
            "Brier": f"{summary.brier:.3f}",
            "ECE": f"{summary.expected_calibration_error:.3f}",
        }
        for name, summary in summaries.items()
    }
    return named_table("domain", rows)


def order_table(summaries: Mapping[str, Summary]) -> str:
    """Return a table of the accuracy, of each order alone, and of the effect of the first place."""
    rows = {
        name: {
            "pairs": str(summary.pairs),
            "accuracy": str(summary.accuracy),
            **of_orders(
                summary.orders,
                {
                    "chosen first": f"{summary.accuracy_chosen_first:.1%}",
                    "chosen second": f"{summary.accuracy_chosen_second:.1%}",
                    "worth of standing first": f"{summary.position_margin:+.2f}",
                    "its size": f"{summary.position_size:.2f}",
                    "swap consistency": f"{summary.swap_consistency.value:.1%}",
                },
            ),
        }
        for name, summary in summaries.items()
    }
    notes = [*([MATCHED] if "length-matched" in rows else []), *([NO_ORDERS] if summaries["all"].orders == 1 else [])]
    return "\n\n".join([named_table("pairs of", rows), *([" ".join(notes)] if notes else [])])


def of_orders(orders: int, cells: dict[str, str]) -> dict[str, str]:
    """Return cells about orders, or none for a model without orders: they would repeat the accuracy."""
    return cells if orders == 2 else {}


def cost_table(cost: Cost) -> str:
    """Return a table of what one decided pair costs."""
    cells = {
        "pairs decided": str(cost.pairs),
        "sequences": str(cost.sequences),
        "tokens per pair": f"{cost.tokens_per_pair:.0f}",
        "GFLOPs per pair, exact": f"{cost.gflops_per_pair:.3g}",
        "by the paper's formula": "unknown"
        if cost.paper_gflops_per_pair is None
        else f"{cost.paper_gflops_per_pair:.3g}",
        "pairs per second": f"{cost.pairs_per_second:.1f}",
    }
    return table(tuple(cells), [list(cells.values())])


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


def named_table(name: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    """Return a Markdown table from rows of cells by column; the first column, `name`, holds the names of the rows."""
    columns = (name, *next(iter(rows.values())))
    return table(columns, [[row, *cells.values()] for row, cells in rows.items()])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its cells as they are."""
    return tabulate(rows, columns, tablefmt="github", stralign=None, numalign=None, disable_numparse=True)
