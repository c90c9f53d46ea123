"""JudgeBench (arXiv 2410.12784, `ScalerLab/JudgeBench`): pairs in which one response is objectively right.

The benchmark reads both orders and counts a pair as won if more verdicts are for the right response than for the
other: one verdict each is a loss. That is its score, a mean over pairs. Ours, where the two orders are averaged
before deciding, stands beside it; it is the convention of RewardBench for models that read pairs. A model that reads
responses alone has one verdict, so that both conventions agree; a tie is wrong.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

from evaluation.loading import Row, load_rows
from evaluation.report import Report, named_table, of_orders, orders_and_length
from evaluation.scoring import ScoredPair, score_pairs
from evaluation.statistics import Estimate, Share
from evaluation.target import Target
from tinyrm.pairs import PreferencePair

NAME: Final = "judge-bench"
SOURCE: Final = "ScalerLab/JudgeBench"
SPLITS: Final = ("gpt", "claude")
ALL: Final = "**all pairs**"
# Beginnings of `source`.
CATEGORIES: Final = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}


class JudgeBenchRow(Row):
    pair_id: str
    source: str
    question: str
    response_A: str  # noqa: N815 - as published
    response_B: str  # noqa: N815
    label: Literal["A>B", "B>A"]

    def pair(self) -> PreferencePair:
        chosen, rejected = self.response_A, self.response_B
        if self.label == "B>A":
            chosen, rejected = rejected, chosen
        category = next((name for start, name in CATEGORIES.items() if self.source.startswith(start)), "other")
        return PreferencePair.model_construct(
            prompt=self.question, chosen=chosen, rejected=rejected, domain="reasoning", subset=category
        )


def run(target: Target, source: str = SOURCE, split: str = SPLITS[0], revision: str | None = None) -> Report:
    """Score the responses of one model, `gpt` or `claude`; the published ranking is on `gpt`. Raises InvalidInput."""
    rows = load_rows(source, split, JudgeBenchRow, revision)
    return report(score_pairs(target, [row.pair() for row in rows]))


def report(scored: Sequence[ScoredPair]) -> Report:
    """Return the score by category, by both conventions."""
    categories = [*CATEGORIES.values(), "other"]
    parts = {name: [j for j in scored if j.pair.subset == name] for name in categories} | {ALL: list(scored)}
    present = {name: part for name, part in parts.items() if part}
    theirs = {name: share_won(part, [float(wins(j)) for j in part]) for name, part in present.items()}
    ours = {name: share_won(part, [float(j.is_right) for j in part]) for name, part in present.items()}
    rows = {
        name: {
            "pairs": str(len(part)),
            "JudgeBench: inconsistent is wrong": str(Share.from_estimate(theirs[name])),
            **of_orders(
                scored[0].orders,
                {
                    "orders averaged": str(Share.from_estimate(ours[name])),
                    "swap consistency": f"{sum(j.is_consistent for j in part) / len(part):.1%}",
                },
            ),
        }
        for name, part in present.items()
    }
    orders, lengths = orders_and_length(scored)
    score = Share.from_estimate(theirs[ALL])
    figures: dict[str, Any] = {
        "score": score.model_dump(),
        "averaged": Share.from_estimate(ours[ALL]).model_dump(),
        "categories": {
            name: {
                "score": Share.from_estimate(theirs[name]).model_dump(),
                "averaged": Share.from_estimate(ours[name]).model_dump(),
            }
            for name in present
            if name in categories
        },
        "length": lengths,
    }
    return Report(NAME, f"{named_table('category', rows)}\n\n{orders}", figures, score, theirs, list(scored))


def wins(scored: ScoredPair) -> bool:
    """Return whether more of the verdicts, one for each order, are for the right response; a verdict may be a tie."""
    return sum((margin > 0) - (margin < 0) for margin in scored.preference.order_margins) > 0


def share_won(scored: Sequence[ScoredPair], values: Sequence[float]) -> Estimate:
    """Return the mean of one value for each pair, drawn by prompts."""
    return Estimate.of(values, [j.pair.prompt for j in scored])
