"""Who meets whom. A schedule says pairs, round after round, and is told how they ended."""

import math
from collections.abc import Callable, Generator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tinyrm.comparison import Strategy

Pair = tuple[int, int]
# Yields the pairs of a round; is sent the probabilities [n, n] so far, NaN where no pair met.
Schedule = Generator[list[Pair], NDArray[np.float64], None]


def round_robin(n: int) -> Schedule:
    """Everybody meets everybody: n (n - 1) / 2 comparisons."""
    yield list(combinations(range(n), 2))


def reference(n: int) -> Schedule:
    """Everybody meets the last one, which is the reference: n - 1 comparisons."""
    yield [(i, n - 1) for i in range(n - 1)]


def swiss(n: int) -> Schedule:
    """Rounds of neighbours in the standings who have not met: at most n / 2 comparisons in each of log2(n) + 1 rounds.

    The standings are by sum of probabilities. Who is left over in a round waits for the next.
    """
    met: set[Pair] = set()
    standings = list(range(n))
    for _ in range(swiss_rounds(n)):
        pairs = _neighbours(standings, met)
        if not pairs:
            return
        met.update(pairs)
        probabilities = yield pairs
        points = np.nansum(probabilities, axis=1)
        standings = sorted(range(n), key=lambda i: (-points[i], i))


def swiss_rounds(n: int) -> int:
    return math.ceil(math.log2(n)) + 1


def knockout(n: int) -> Schedule:
    """The winner of each pair goes on: n - 1 comparisons. The best is found, the others are ranked roughly."""
    left = list(range(n))
    while len(left) > 1:
        pairs = [(left[i], left[i + 1]) for i in range(0, len(left) - 1, 2)]
        probabilities = yield pairs
        bye = left[len(pairs) * 2 :]
        left = [*bye, *(i if probabilities[i, j] >= 0.5 else j for i, j in pairs)]


def _neighbours(standings: list[int], met: set[Pair]) -> list[Pair]:
    """Each with the nearest below that it has not met."""
    pairs: list[Pair] = []
    waiting = list(standings)
    while waiting:
        i = waiting.pop(0)
        j = next((other for other in waiting if (min(i, other), max(i, other)) not in met), None)
        if j is not None:
            waiting.remove(j)
            pairs.append((min(i, j), max(i, j)))
    return pairs


SCHEDULES: dict[Strategy, Callable[[int], Schedule]] = {
    "round_robin": round_robin,
    "swiss": swiss,
    "knockout": knockout,
    "reference": reference,
}


def most_comparisons(strategy: Strategy, n: int) -> int:
    """Of n participants, the reference among them."""
    if strategy == "round_robin":
        return n * (n - 1) // 2
    return swiss_rounds(n) * (n // 2) if strategy == "swiss" else n - 1
