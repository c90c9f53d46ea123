"""Medians, spreads, and how far two contenders' logits are apart."""

import statistics
from collections.abc import Sequence
from typing import Any

Logits = Sequence[Sequence[float]]


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and the 10th and 90th percentile, in seconds."""
    return {
        "median_s": statistics.median(seconds),
        "p10_s": percentile(seconds, 0.1),
        "p90_s": percentile(seconds, 0.9),
        "samples": len(seconds),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest samples."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def difference(logits: Logits, reference: Logits) -> float:
    """Largest absolute difference. Infinite where the two do not have the same form or one is not a number."""
    pairs = [(a, b) for row, other in zip(logits, reference, strict=False) for a, b in zip(row, other, strict=False)]
    same_form = [len(row) for row in logits] == [len(row) for row in reference]
    if not same_form or any(a != a or b != b for a, b in pairs):  # noqa: PLR0124  # not a number
        return float("inf")
    return max(abs(a - b) for a, b in pairs)


def plan(seconds: float, budget_s: float, rounds: int, *, least: int = 3, most: int = 60) -> list[int]:
    """Samples in each of at most `rounds` rounds, as many as the budget allows a contender that takes `seconds`."""
    samples = max(least, min(most, int(budget_s / max(seconds, 1e-6))))
    rounds = min(rounds, samples)
    return [samples // rounds + (turn < samples % rounds) for turn in range(rounds)]
