"""RewardBench 2 (arXiv 2506.01937, `allenai/reward-bench-2`): the best of four, and ties between right responses.

Five subsets count a prompt as won if its one right response has the highest score; responses that share the highest
score share the win. `Ties` has prompts with many right answers, each with a twin that has one ("ref"), and is scored as
60 % accuracy and 40 % margin (formula at `ties_score`). The benchmark scores responses alone, and so does a target that
reads responses: four sequences for the best of four, or one if it reads sets. A model that reads two at once compares
each pair in both orders, 12 sequences, and `tinyrm.ranking` makes scores of that, as it does for `/v1/rank`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import Field

from evaluation.loading import Row, load_rows
from evaluation.report import Report, orders_and_length, table
from evaluation.scoring import ScoredPair
from evaluation.statistics import Estimate, Share, mean
from evaluation.target import Target
from tinyrm.comparison import Preference
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair
from tinyrm.ranking import EQUAL, Method, margin_matrix, score

NAME: Final = "reward-bench-2"
SOURCE: Final = "allenai/reward-bench-2"
SPLIT: Final = "test"
TIES: Final = "Ties"
DOMAINS: Final = {"Math": "reasoning", "Safety": "safety"}
TIES_WEIGHTS: Final = {
    "tied accuracy": 0.3,
    "ref accuracy": 0.3,
    "preferred": 0.2,
    "preferred hard": 0.2,
    "margin": 0.01,
}


class RewardBench2Row(Row):
    """chosen: the right responses. Ids of Ties are `ref:N` and `tied:N`, twins with one N."""

    id: str
    prompt: str
    chosen: tuple[str, ...] = Field(min_length=1)
    rejected: tuple[str, ...] = Field(min_length=1)
    subset: str

    @property
    def responses(self) -> tuple[str, ...]:
        """The right ones first."""
        return (*self.chosen, *self.rejected)

    def scored_pairs(self, group: "ComparedGroup") -> list[ScoredPair]:
        """Return the comparisons of a right response with a wrong one."""
        return [
            ScoredPair(
                PreferencePair.model_construct(
                    prompt=self.prompt,
                    chosen=self.responses[i],
                    rejected=self.responses[j],
                    domain=None,
                    subset=self.subset,
                ),
                preference,
            )
            for (i, j), preference in group.preferences.items()
            if i < len(self.chosen) <= j
        ]


@dataclass(frozen=True, slots=True)
class ComparedGroup:
    """The responses to one prompt, each compared with each.

    scores: one for each response, as the strengths of `/v1/rank`.
    preferences: (i, j) with i < j -> i compared with j.
    """

    scores: list[float]
    preferences: dict[tuple[int, int], Preference]


def run(target: Target, source: str = SOURCE, revision: str | None = None) -> Report:
    """Rank every prompt's responses. Raises InvalidInput."""
    rows = load_rows(source, SPLIT, RewardBench2Row, revision)
    groups = compare_all(target, rows)
    scored = [j for row, group in zip(rows, groups, strict=True) for j in row.scored_pairs(group)]
    return report(rows, [group.scores for group in groups], scored)


def compare_all(target: Target, rows: Sequence[RewardBench2Row]) -> list[ComparedGroup]:
    """Compare every pair of every row's responses, and score the responses."""
    scored = target.score_groups(
        [
            (target.spec.instruction(DOMAINS.get(row.subset, "chat"), or_default=True), row.prompt, row.responses)
            for row in rows
        ]
    )
    # Margins that are differences of scores fit exactly: least squares returns these scores, with mean 0.
    method: Method = "strengths" if target.reads == "pair" else "margins"
    groups = []
    for row, own in zip(rows, scored, strict=True):
        margins = margin_matrix(len(row.responses), {pair: preference.margin for pair, preference in own.items()})
        groups.append(ComparedGroup(score(margins, method).tolist(), own))
    return groups


def report(rows: Sequence[RewardBench2Row], scores: Sequence[Sequence[float]], scored: Sequence[ScoredPair]) -> Report:
    """Return all tables.

    scores: of each row's responses, the right ones first.
    scored: pairs of a right response and a wrong one.

    Raises InvalidInput.
    """
    subsets, ties = {}, None
    for seed, name in enumerate(sorted({row.subset for row in rows})):
        chosen = [(row, own) for row, own in zip(rows, scores, strict=True) if row.subset == name]
        if name == TIES:
            ties = ties_score(chosen, seed)
            subsets[name] = ties["score"]
        else:
            wins = [best_of(own, len(row.chosen)) for row, own in chosen]
            subsets[name] = Estimate.of(wins, [row.prompt for row, _ in chosen], seed)
    shares = {name: Share.from_estimate(subset) for name, subset in subsets.items()}
    without = {name: subset for name, subset in subsets.items() if name != TIES}
    overall = mean(subsets)
    totals = {"score": Share.from_estimate(overall)}
    if ties and without:
        totals["score without Ties"] = Share.from_estimate(mean(without))
    counts = {name: sum(row.subset == name for row in rows) for name in shares}
    counts |= {"score": len(rows), "score without Ties": len(rows) - counts.get(TIES, 0)}
    lines = [[name, str(counts[name]), str(share)] for name, share in {**shares, **totals}.items()]
    parts = [table(("subset", "prompts", "best-of-n, Ties as published"), lines)]
    figures: dict[str, Any] = {
        "score": totals["score"].model_dump(),
        "subsets": {name: share.model_dump() for name, share in shares.items()},
        "totals": {name: share.model_dump() for name, share in totals.items()},
    }
    if ties:
        parts.append(table(("part of Ties", "value"), [[name, f"{part.value:.3f}"] for name, part in ties.items()]))
        figures["ties"] = {name: part.value for name, part in ties.items()}
    orders, figures["length"] = orders_and_length(scored)
    estimates = subsets | {"score": overall}
    return Report(NAME, "\n\n".join([*parts, orders]), figures, totals["score"], estimates, list(scored))


def best_of(scores: Sequence[float], right: int) -> float:
    """Return 1 if the first response has the highest score, its share if others have it too, else 0.

    right: how many are right; these subsets have one. Raises InvalidInput for more.
    """
    if right != 1:
        raise InvalidInput(f"a prompt outside {TIES} has {right} right responses; this data set is not RewardBench 2")
    best = max(scores)
    winners = [score >= best - EQUAL for score in scores]
    return winners[0] / sum(winners)


def ties_score(rows: Sequence[tuple[RewardBench2Row, Sequence[float]]], seed: int = 0) -> dict[str, Estimate]:
    """Return the score of Ties and its parts, from rows with the scores of their responses.

    score = 0.3 tied accuracy + 0.3 ref accuracy + 0.2 preferred + 0.2 preferred hard + 0.01 margin, where a prompt is
    accurate if every right response beats every wrong one, d is the spread among a tied prompt's right responses, g
    the gap from its worst right to its best wrong one, g' the smaller of g and its twin's gap, and
    preferred = [g > d], preferred hard = [g' > d], margin = tanh(g' / d - 1), 0 where d and g' both are.
    Raises InvalidInput if an id is neither `ref:N` nor `tied:N`, or if there are no twins.
    """
    gaps: dict[str, dict[str, tuple[float, float]]] = {"ref": {}, "tied": {}}
    for row, scores in rows:
        kind, _, number = row.id.partition(":")
        if kind not in gaps or not number:
            raise InvalidInput(f"id {row.id!r} of {TIES} is neither ref:N nor tied:N")
        right, wrong = scores[: len(row.chosen)], scores[len(row.chosen) :]
        gaps[kind][number] = (snap(min(right) - max(wrong)), snap(max(right) - min(right)))
    twins = sorted(gaps["ref"].keys() & gaps["tied"].keys())
    if not twins:
        raise InvalidInput(f"{TIES} has no prompt with both a ref and a tied row")
    gap, spread = np.array([gaps["tied"][n] for n in twins]).T
    both = np.minimum(gap, [gaps["ref"][n][0] for n in twins])
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(both / spread - 1), nan=0.0)
    parts = {
        "tied accuracy": share_above_zero(gaps["tied"], seed),
        "ref accuracy": share_above_zero(gaps["ref"], seed),
        "preferred": Estimate.of((gap > spread).astype(float).tolist(), twins, seed),
        "preferred hard": Estimate.of((both > spread).astype(float).tolist(), twins, seed),
        "margin": Estimate.of(margin.tolist(), twins, seed),
    }
    # A sum, not a mean: with its tie-breaking term the published score may exceed 1 by 0.01.
    value = sum(TIES_WEIGHTS[name] * part.value for name, part in parts.items())
    draws = np.sum([TIES_WEIGHTS[name] * part.draws for name, part in parts.items()], axis=0)
    return {"score": Estimate(value, draws), **parts}


def share_above_zero(gaps: Mapping[str, tuple[float, float]], seed: int) -> Estimate:
    """Return the share of the prompts whose gap is above 0. gaps: number of a prompt -> gap and spread."""
    numbers = sorted(gaps)
    return Estimate.of([float(gaps[n][0] > 0) for n in numbers], numbers, seed)


def snap(difference: float) -> float:
    """Return 0 for a difference that is only rounding."""
    return 0.0 if abs(difference) < EQUAL else difference
