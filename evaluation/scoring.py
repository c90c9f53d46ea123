"""Preference pairs with the preferences of a model, one record for each pair."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.target import Target
from tinyrm.comparison import Preference
from tinyrm.pairs import PreferencePair
from tinyrm.readout import recalibrate


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A pair and the model's preference, the chosen response as A: from both orders, or from two single scores."""

    pair: PreferencePair
    preference: Preference

    @property
    def credit(self) -> float:
        """Return 1 if the preference is right, 0 if it is wrong, one half for a tie."""
        return {"a": 1.0, "b": 0.0, "tie": 0.5}[self.preference.preferred]

    @property
    def credit_one_order(self) -> float:
        """Return the share of the orders that are right on their own."""
        return float(np.mean([margin > 0 for margin in self.preference.order_margins]))

    @property
    def is_right(self) -> bool:
        """Return whether the chosen response is preferred. As benchmarks count, a tie is wrong."""
        return self.preference.margin > 0

    @property
    def orders(self) -> int:
        """Return how many orders were scored: 2, or 1 where responses are read alone and no order exists."""
        return len(self.preference.order_margins)

    @property
    def position_margin(self) -> float:
        """Return the uncalibrated log-odds that the first place adds on this pair; 0 where no order exists."""
        return (self.preference.order_margins[0] - self.preference.order_margins[-1]) / 2

    @property
    def is_consistent(self) -> bool:
        return not self.preference.orders_disagree

    @property
    def longer_is_better(self) -> float:
        """Return the credit of a model that prefers the response with more characters."""
        chosen, rejected = len(self.pair.chosen), len(self.pair.rejected)
        return 0.5 if chosen == rejected else float(chosen > rejected)

    @property
    def length_difference(self) -> float:
        """Return by how many characters the responses differ, as a share of the longer one: 0 if equally long."""
        chosen, rejected = len(self.pair.chosen), len(self.pair.rejected)
        return abs(chosen - rejected) / max(chosen, rejected, 1)


def digest(scored: Sequence[ScoredPair]) -> str:
    """Return a hash of the pairs that were scored, in any order."""
    lines = sorted(
        json.dumps([each.pair.prompt, each.pair.chosen, each.pair.rejected, each.pair.domain]) for each in scored
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def score_pairs(target: Target, pairs: Sequence[PreferencePair]) -> list[ScoredPair]:
    """Score every pair under the instruction and at the temperature of its domain, as `Target.score` does."""
    instructions = [target.spec.instruction(pair.domain, or_default=True) for pair in pairs]
    preferences = target.score([pair.comparison() for pair in pairs], instructions)
    return [
        ScoredPair(pair, recalibrate(preference, target.temperature_of(pair.domain)) if target.domains else preference)
        for pair, preference in zip(pairs, preferences, strict=True)
    ]


def score_unique(target: Target, pairs: Sequence[PreferencePair]) -> list[ScoredPair]:
    """Score as `score_pairs` does, but a repeated pair only once: splits of a benchmark overlap."""
    keys = [(pair.prompt, pair.chosen, pair.rejected, pair.domain) for pair in pairs]
    unique = dict(zip(keys, pairs, strict=True))
    found = dict(zip(unique, score_pairs(target, list(unique.values())), strict=True))
    return [ScoredPair(pair, found[key].preference) for pair, key in zip(pairs, keys, strict=True)]
