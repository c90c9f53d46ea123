"""Test schedules: the stated number of comparisons, none twice, and the best response first."""

import numpy as np
import pytest

from tinyrm.ranking import fit
from tinyrm.schedules import SCHEDULES, Pair, Strategy, comparisons_needed


def play(strategy: Strategy, strengths: list[float]) -> tuple[list[list[Pair]], np.ndarray]:
    """Play all rounds with the win probabilities that follow from the strengths."""
    n = len(strengths)
    probabilities = np.full((n, n), np.nan)
    schedule, rounds = SCHEDULES[strategy](n), []
    pairs = next(schedule)
    while True:
        rounds.append(pairs)
        for i, j in pairs:
            probabilities[i, j] = 1 / (1 + np.exp(strengths[j] - strengths[i]))
            probabilities[j, i] = 1 - probabilities[i, j]
        try:
            pairs = schedule.send(probabilities)
        except StopIteration:
            return rounds, probabilities


@pytest.mark.parametrize("n", [2, 3, 4, 7, 16, 33])
@pytest.mark.parametrize("strategy", list(SCHEDULES))
def test_no_pair_is_compared_twice_and_the_cost_is_as_stated(strategy: Strategy, n: int) -> None:
    rounds, _ = play(strategy, list(np.random.default_rng(n).normal(size=n)))
    pairs = [pair for some in rounds for pair in some]
    assert len(pairs) == len(set(map(frozenset, pairs)))
    assert all(i != j for i, j in pairs)
    assert {i for pair in pairs for i in pair} == set(range(n))
    for some in rounds:
        if strategy in ("swiss", "knockout"):
            assert len({i for pair in some for i in pair}) == 2 * len(some), "once a round"
    exact = {"round_robin": n * (n - 1) // 2, "knockout": n - 1, "reference": n - 1}
    assert len(pairs) == exact.get(strategy, len(pairs)) <= comparisons_needed(strategy, n)


@pytest.mark.parametrize("n", [2, 5, 16, 31])
@pytest.mark.parametrize("strategy", ["round_robin", "swiss", "knockout"])
def test_the_strongest_response_is_first(strategy: Strategy, n: int) -> None:
    strengths = list(np.random.default_rng(n).permutation(np.linspace(-3, 3, n)))
    _, probabilities = play(strategy, strengths)
    assert fit(np.nan_to_num(probabilities)).order[0] == int(np.argmax(strengths))


def test_swiss_comes_close_to_the_whole_order_at_a_fraction_of_the_cost() -> None:
    strengths = list(np.random.default_rng(5).permutation(np.linspace(-3, 3, 32)))
    rounds, probabilities = play("swiss", strengths)
    assert sum(map(len, rounds)) < 0.2 * comparisons_needed("round_robin", 32)
    found = fit(np.nan_to_num(probabilities)).values
    assert np.corrcoef(found, strengths)[0, 1] > 0.99
