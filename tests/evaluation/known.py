"""Scorers with known results."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluation.target import Meter, ResponseScorer, Single, Target
from tinyrm.comparison import Comparison, Preference
from tinyrm.readout import read_out
from tinyrm.spec import Spec

# What the better response of a made pair says.
RIGHT = "good"


@dataclass(frozen=True)
class Known:
    """z: log-odds that the first response is better, of one order."""

    z: Callable[[Comparison], float]
    temperature: float = 1.0

    def score(
        self, comparisons: Sequence[Comparison], instructions: Sequence[str], *, swap: bool = True
    ) -> list[Preference]:
        assert swap
        assert len(comparisons) == len(instructions)
        return [read_out([[self.z(c), 0.0], [self.z(c.swapped()), 0.0]], self.temperature) for c in comparisons]

    def at(self, temperature: float) -> "Known":
        return replace(self, temperature=temperature)


def oracle(c: Comparison) -> float:
    return 2.0 * ((RIGHT in c.response_a) - (RIGHT in c.response_b))


def contrarian(c: Comparison) -> float:
    return -oracle(c)


def length(c: Comparison) -> float:
    return float(len(c.response_a) - len(c.response_b))


def first_is_better(c: Comparison) -> float:
    return 3.0


def torn(c: Comparison) -> float:
    """Be right if the right response is first; otherwise be wrong with a smaller margin, so that the mean is right."""
    return 2.0 if RIGHT in c.response_a else 1.0


def coin(c: Comparison) -> float:
    """Draw each order at random."""
    return zlib.crc32(f"{c.prompt}|{c.response_a}|{c.response_b}".encode()) / 2**31 - 1


def alone(score: Callable[[Single], float]) -> Target:
    """Return a target that reads responses; its meter counts how many."""
    meter = Meter()

    def run(singles: Sequence[Single]) -> NDArray[np.float64]:
        meter.sequences += len(singles)
        return np.array([score(single) for single in singles])

    return Target("known-alone@1", "none", Spec(), ResponseScorer(run), meter)


def length_alone(single: Single) -> float:
    """Score a response so that differences are those of `length`."""
    return float(len(single.response))


def oracle_alone(single: Single) -> float:
    return 2.0 * (RIGHT in single.response)


def target(z: Callable[[Comparison], float]) -> Target:
    return Target("known@1", "none", Spec(), Known(z))
