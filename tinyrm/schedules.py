"""Choose which responses are compared. A schedule yields pairs, round by round, and receives the probabilities."""

import math
from collections.abc import Callable, Generator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tinyrm.comparison import Strategy

Pair = tuple[int, int]
# Yields the pairs of a round; receives the probabilities [n, n] so far, NaN where no pair was compared.
Schedule = Generator[list[Pair], NDArray[np.float64], None]


def round_robin(n: int) -> Schedule:
    """Compare every pair: n (n - 1) / 2 comparisons."""
    yield list(combinations(range(n), 2))


def reference(n: int) -> Schedule:
    """Compare each response with the last, which is the reference: n - 1 comparisons."""
    yield [(i, n - 1) for i in range(n - 1)]


def swiss(n: int) -> Schedule:
    """Compare neighbours in the standings that were not compared yet: at most n / 2 in each of log2(n) + 1 rounds.

    The standings are by the sum of probabilities. A response without a partner skips a round.
    """
    compared: set[Pair] = set()
    standings = list(range(n))
    for _ in range(swiss_rounds(n)):
        pairs: list[Pair] = []
        free = list(standings)
        while free:
            i = free.pop(0)
            j = next((other for other in free if (min(i, other), max(i, other)) not in compared), None)
            if j is not None:
                free.remove(j)
                pairs.append((min(i, j), max(i, j)))
        if not pairs:
            return
        compared.update(pairs)
        probabilities = yield pairs
        points = np.nansum(probabilities, axis=1)
        standings = sorted(range(n), key=lambda i: (-points[i], i))


def swiss_rounds(n: int) -> int:
    """Return the largest number of rounds of `swiss`."""
    return math.ceil(math.log2(n)) + 1


def knockout(n: int) -> Schedule:
    """Compare winners with winners: n - 1 comparisons. Finds the best response; the order of the others is rough."""
    left = list(range(n))
    while len(left) > 1:
        pairs = [(left[i], left[i + 1]) for i in range(0, len(left) - 1, 2)]
        probabilities = yield pairs
        bye = left[len(pairs) * 2 :]
        left = [*bye, *(i if probabilities[i, j] >= 0.5 else j for i, j in pairs)]


SCHEDULES: dict[Strategy, Callable[[int], Schedule]] = {
    "round_robin": round_robin,
    "swiss": swiss,
    "knockout": knockout,
    "reference": reference,
}


def comparisons_needed(strategy: Strategy, n: int) -> int:
    """Return the largest number of comparisons among n participants, a reference included."""
    if strategy == "round_robin":
        return n * (n - 1) // 2
    return swiss_rounds(n) * (n // 2) if strategy == "swiss" else n - 1
