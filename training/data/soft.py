"""Pairs with a probability and a weight, and what adds these to batches.

Without scores in the data nothing here is used: batches are those of plain verdicts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tinyrm.pairs import PreferencePair
from training.data.collate import Orders, PairDataset


def has_labels(pairs: Sequence[PreferencePair]) -> bool:
    """Return whether a pair says more than which response is better."""
    return any(pair.is_soft or pair.weight != 1 for pair in pairs)


@dataclass(frozen=True, slots=True)
class SoftPair:
    """A pair's encodings, chosen first and second, and what is known of it.

    target: the probability that the chosen response is the better one.
    weight: of the pair in the loss.
    """

    encodings: Orders
    target: float
    weight: float = 1.0


class SoftPairs(Dataset[SoftPair]):
    """The items of a data set of pairs with their targets and weights.

    targets: one for each pair, in order; by default those of the pairs themselves.

    Weights are divided by their mean over the data set. The loss of a batch is the mean over its rows of weight times
    cross-entropy; in expectation that is the weighted mean over the data, whatever the batch and however many micro
    batches and processes share a step. To divide by the weights of a batch instead would give a pair more in a batch
    of light ones.
    """

    def __init__(self, dataset: PairDataset, targets: Sequence[float] | None = None) -> None:
        self.dataset = dataset
        self._targets = [pair.target for pair in dataset.pairs] if targets is None else targets
        self._weights = normalised([pair.weight for pair in dataset.pairs])

    @property
    def pairs(self) -> list[PreferencePair]:
        return self.dataset.pairs

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> SoftPair:
        return SoftPair(self.dataset[index], self._targets[index], self._weights[index])

    def lengths(self) -> list[int]:
        return self.dataset.lengths()

    def with_pairs(self, pairs: list[PreferencePair]) -> "SoftPairs":
        """Return a data set of other pairs, encoded in the same way, with their own targets."""
        return SoftPairs(self.dataset.with_pairs(pairs))


def normalised(weights: Sequence[float]) -> list[float]:
    """Return the weights divided by their mean."""
    mean = sum(weights) / max(len(weights), 1)
    return [weight / mean for weight in weights]


@dataclass(frozen=True, slots=True)
class SoftCollator:
    """Adds two things to a collator's batch, one for each of its rows, [rows].

    targets: the probability that the first choice is the better one, or of a single response that it is.
    weights: of the row in the loss.
    """

    hard: Callable[[Sequence[Orders]], dict[str, Tensor]]

    def __call__(self, pairs: Sequence[SoftPair]) -> dict[str, Any]:
        rows = [
            (pair.target if place == 0 else 1 - pair.target, pair.weight)
            for pair in pairs
            for place, text in enumerate(pair.encodings)
            if text
        ]
        targets, weights = torch.tensor(rows, dtype=torch.float32).T
        return {**self.hard([pair.encodings for pair in pairs]), "targets": targets, "weights": weights}
