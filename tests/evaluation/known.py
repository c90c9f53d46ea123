"""Scorers of which it is known what they must get."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evaluation.target import Target
from tinyrm.comparison import Comparison, Preference
from tinyrm.readout import read_out
from tinyrm.spec import ClozeSpec

# What the better response of a made pair says.
RIGHT = "good"


@dataclass(frozen=True)
class Known:
    """z: log-odds that what stands first is better, of one order of reading."""

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
    """Right where the right response stands first, and unsure enough of it to be overruled where it does not."""
    return 2.0 if RIGHT in c.response_a else 1.0


def coin(c: Comparison) -> float:
    """A coin for each reading: both orders are thrown anew."""
    return zlib.crc32(f"{c.prompt}|{c.response_a}|{c.response_b}".encode()) / 2**31 - 1


def target(z: Callable[[Comparison], float]) -> Target:
    return Target("known@1", "none", ClozeSpec(), Known(z))
