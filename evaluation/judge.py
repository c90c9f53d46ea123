"""A scorer judged on preference pairs, one record for each pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tinyrm.comparison import Comparison, Preference
from tinyrm.pairs import PreferencePair
from tinyrm.spec import ClozeSpec


class ScoresPairs(Protocol):
    """What `tinyrm.scorer.Scorer` and `evaluation.target.Subject` do."""

    def score(
        self, comparisons: Sequence[Comparison], instructions: Sequence[str], *, swap: bool = True
    ) -> list[Preference]: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair and the model's answer, the chosen response being A."""

    pair: PreferencePair
    preference: Preference

    @property
    def credit(self) -> float:
        """1 right, 0 wrong, one half for a tie."""
        return {"a": 1.0, "b": 0.0, "tie": 0.5}[self.preference.preferred]

    @property
    def credit_one_order(self) -> float:
        """Mean over the two orders of being right when only that order is read."""
        return sum(margin > 0 for margin in self.preference.order_margins) / 2

    @property
    def is_right(self) -> bool:
        """As benchmarks count: a tie is wrong."""
        return self.preference.margin > 0

    @property
    def position_margin(self) -> float:
        """Log-odds, uncalibrated, that the response which stands first owes to its place."""
        chosen_first, chosen_second = self.preference.order_margins
        return (chosen_first - chosen_second) / 2

    @property
    def is_consistent(self) -> bool:
        return not self.preference.orders_disagree

    @property
    def longer_is_better(self) -> float:
        """What a judge earns that takes the response with more characters."""
        chosen, rejected = len(self.pair.chosen), len(self.pair.rejected)
        return 0.5 if chosen == rejected else float(chosen > rejected)


def judge(scorer: ScoresPairs, spec: ClozeSpec, pairs: Sequence[PreferencePair]) -> list[Judged]:
    """Every pair in both orders, each under the instruction of its domain."""
    instructions = [spec.instruction(pair.domain, or_default=True) for pair in pairs]
    preferences = scorer.score([pair.comparison() for pair in pairs], instructions)
    return [Judged(pair, preference) for pair, preference in zip(pairs, preferences, strict=True)]


def judge_each_once(scorer: ScoresPairs, spec: ClozeSpec, pairs: Sequence[PreferencePair]) -> list[Judged]:
    """As `judge`, but a pair that occurs again is not read again: splits of a benchmark overlap."""
    keys = [(pair.prompt, pair.chosen, pair.rejected, pair.domain) for pair in pairs]
    unique = dict(zip(keys, pairs, strict=True))
    answers = dict(zip(unique, judge(scorer, spec, list(unique.values())), strict=True))
    return [Judged(pair, answers[key].preference) for pair, key in zip(pairs, keys, strict=True)]
