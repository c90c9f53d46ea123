"""Preference pairs and what a model says of them, one record for each pair."""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.target import Target
from tinyrm.comparison import Preference
from tinyrm.pairs import PreferencePair


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A pair and the model's preference, both orders read, the chosen response as A."""

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
        """Whether the chosen response is preferred. As benchmarks count, a tie is wrong."""
        return self.preference.margin > 0

    @property
    def position_margin(self) -> float:
        """Log-odds, uncalibrated, that standing first is worth on this pair."""
        chosen_first, chosen_second = self.preference.order_margins
        return (chosen_first - chosen_second) / 2

    @property
    def is_consistent(self) -> bool:
        return not self.preference.orders_disagree

    @property
    def longer_is_better(self) -> float:
        """The credit of a model that prefers the response with more characters."""
        chosen, rejected = len(self.pair.chosen), len(self.pair.rejected)
        return 0.5 if chosen == rejected else float(chosen > rejected)


def score_pairs(target: Target, pairs: Sequence[PreferencePair]) -> list[ScoredPair]:
    """Read every pair in both orders, each under the instruction of its domain."""
    instructions = [target.spec.instruction(pair.domain, or_default=True) for pair in pairs]
    preferences = target.score([pair.comparison() for pair in pairs], instructions)
    return [ScoredPair(pair, preference) for pair, preference in zip(pairs, preferences, strict=True)]


def score_unique(target: Target, pairs: Sequence[PreferencePair]) -> list[ScoredPair]:
    """As `score_pairs`, but read a pair that occurs again only once: splits of a benchmark overlap."""
    keys = [(pair.prompt, pair.chosen, pair.rejected, pair.domain) for pair in pairs]
    unique = dict(zip(keys, pairs, strict=True))
    found = dict(zip(unique, score_pairs(target, list(unique.values())), strict=True))
    return [ScoredPair(pair, found[key].preference) for pair, key in zip(pairs, keys, strict=True)]
