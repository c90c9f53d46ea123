"""Test how a cascade joins the scores of one model and the margins of another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinyrm.ranking import Ranking, rank, rank_scores, settle

Matrix = NDArray[np.float64]


@st.composite
def groups(draw: st.DrawFn, *, all_settled: bool = False) -> tuple[Ranking, Matrix]:
    """Return a ranking by distinct scores, and margins of its best k."""
    n = draw(st.integers(2, 9))
    k = n if all_settled else draw(st.integers(2, n))
    scores = draw(st.lists(st.integers(-40, 40), min_size=n, max_size=n, unique=True))
    return rank_scores(np.array(scores), 8.0), margins_of(draw, k)


def margins_of(draw: st.DrawFn, k: int) -> Matrix:
    margins = np.full((k, k), np.nan)
    for i in range(k):
        for j in range(i):
            margins[i, j] = draw(st.integers(-64, 64)) / 8
            margins[j, i] = -margins[i, j]
    return margins


@given(groups())
def test_the_best_are_ordered_by_the_second_model_and_the_others_by_the_first(group: tuple[Ranking, Matrix]) -> None:
    ranking, margins = group
    k, best = len(margins), ranking.order[: len(margins)]
    settled = settle(ranking, margins)
    assert settled.order == [*(best[i] for i in rank(margins).order), *ranking.order[k:]] or has_ties(settled)
    assert set(settled.order[:k]) == set(best) or has_ties(settled)
    values, own = settled.strengths.values, ranking.strengths.values
    assert values.mean() == pytest.approx(0, abs=1e-9)
    # Distances: within the best those of the second model, among the others those of the first.
    assert values[best] - values[best].mean() == pytest.approx(rank(margins).strengths.values, abs=1e-6)
    others = ranking.order[k:]
    assert np.diff(values[others]) == pytest.approx(np.diff(own[others]), abs=1e-9)


def has_ties(ranking: Ranking) -> bool:
    """Return whether two responses are as good as equal, so that their order may go either way."""
    return bool((np.diff(np.sort(ranking.strengths.values)) < 1e-6).any())


@given(groups())
def test_the_best_keep_their_mean_unless_the_least_of_them_would_fall_too_low(group: tuple[Ranking, Matrix]) -> None:
    ranking, margins = group
    k, best = len(margins), ranking.order[: len(margins)]
    others = ranking.order[k:]
    if not others:
        return
    values, own = settle(ranking, margins).strengths.values, ranking.strengths.values
    # Relative to one of the others, whose strength the first model alone decides.
    values, own = values - values[others[0]], own - own[others[0]]
    raised = values[best].mean() - own[best].mean()
    assert raised >= -1e-9
    assert values[best].min() >= own[best].min() - 1e-9
    assert raised == pytest.approx(0, abs=1e-9) or values[best].min() == pytest.approx(own[best].min(), abs=1e-9)


@given(groups(), st.integers(0, 1000))
def test_the_order_of_the_input_does_not_matter(group: tuple[Ranking, Matrix], seed: int) -> None:
    ranking, margins = group
    settled = settle(ranking, margins)
    places = np.random.default_rng(seed).permutation(len(ranking.order))
    shuffled = settle(rank_scores(ranking.strengths.values[places], 1.0), margins)
    assert shuffled.strengths.values == pytest.approx(settled.strengths.values[places], abs=1e-9)
    assert shuffled.strengths.standard_errors == pytest.approx(settled.strengths.standard_errors[places], abs=1e-9)
    np.testing.assert_allclose(shuffled.margins, settled.margins[np.ix_(places, places)], atol=1e-9)


@given(groups(all_settled=True))
def test_a_cascade_that_settles_all_is_a_round_robin(group: tuple[Ranking, Matrix]) -> None:
    ranking, margins = group
    settled, back = settle(ranking, margins), np.argsort(ranking.order)
    round_robin = rank(margins[np.ix_(back, back)])
    np.testing.assert_array_equal(settled.margins, round_robin.margins)
    assert settled.strengths.values == pytest.approx(round_robin.strengths.values, abs=1e-9)
    assert settled.strengths.standard_errors == pytest.approx(round_robin.strengths.standard_errors, abs=1e-9)


def test_margins_are_those_of_the_model_that_compared_the_pair() -> None:
    ranking = rank_scores(np.array([0.0, 3.0, -1.0, 2.0]), 1.0)
    margins = np.array([[np.nan, -5.0], [5.0, np.nan]])
    settled = settle(ranking, margins)
    assert settled.order == [3, 1, 0, 2]
    assert (settled.margins[1, 3], settled.margins[3, 1]) == (-5, 5)
    assert (settled.margins[1, 0], settled.margins[0, 2], settled.margins[2, 3]) == (3, 1, -3)
    assert np.isnan(np.diag(settled.margins)).all()
    assert (ranking.margins[1, 3], ranking.order) == (1, [1, 3, 0, 2]), "the first model's ranking is left as it is"
    assert settled.cycle_rate == 0


def test_equal_scores_at_the_edge_stay_equal_to_the_least_of_the_best() -> None:
    settled = settle(rank_scores(np.array([1.0, 0.0, 0.0]), 1.0), np.array([[np.nan, -9.0], [9.0, np.nan]]))
    assert settled.order[0] == 1
    assert settled.strengths.values[0] == pytest.approx(settled.strengths.values[2])


def test_errors_are_those_of_a_round_robin_with_the_same_margins() -> None:
    ranking = rank_scores(np.array([2.0, 1.2, 0.4, -0.3, -1.0]), 1.0)
    settled = settle(ranking, np.array([[np.nan, -4.0], [4.0, np.nan]]))
    assert settled.strengths.standard_errors == pytest.approx(rank(settled.margins).strengths.standard_errors)
    assert np.ptp(settled.strengths.standard_errors) > 0.01


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (2, 3)])
def test_margins_of_another_number_of_responses_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="best k of 3"):
        settle(rank_scores(np.array([1.0, 2.0, 3.0]), 1.0), np.zeros(shape))


def test_margins_that_lack_a_pair_are_refused() -> None:
    margins = np.zeros((3, 3))
    margins[0, 2] = np.nan
    with pytest.raises(ValueError, match="all pairs"):
        settle(rank_scores(np.arange(4.0), 1.0), margins)
