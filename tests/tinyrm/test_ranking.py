"""Test strengths against an independent fit, on simulated games, and in extreme cases."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm

from tinyrm.ranking import (
    METHODS,
    PRIOR_GAMES,
    cycle_rate,
    expected_wins,
    fit,
    least_squares,
    margin_matrix,
    mean_wins,
    order,
    place_last,
    rank,
    rank_scores,
    score,
    sigmoid,
)

Matrix = NDArray[np.float64]


def simulated(strengths: Matrix, games: int, seed: int = 0) -> Matrix:
    """Return the wins in `games` games of each pair."""
    rng = np.random.default_rng(seed)
    n = len(strengths)
    wins = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            wins[i, j] = rng.binomial(games, 1 / (1 + np.exp(strengths[j] - strengths[i])))
            wins[j, i] = games - wins[i, j]
    return wins


def independent_fit(wins: Matrix) -> Matrix:
    """Find the same maximum by another method: quasi-Newton, gradients by differences."""

    def loss(s: Matrix) -> float:
        games = (wins * np.logaddexp(0, s[None, :] - s[:, None])).sum()
        return float(games + PRIOR_GAMES / 2 * (np.logaddexp(0, s) + np.logaddexp(0, -s)).sum())

    found = minimize(loss, np.zeros(len(wins)), method="BFGS", options={"gtol": 1e-9}).x
    polished: Matrix = minimize(loss, found, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}).x
    return polished - polished.mean()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("games", [1, 7])
def test_strengths_match_an_independent_fit(seed: int, games: int) -> None:
    rng = np.random.default_rng(seed)
    wins = simulated(rng.normal(scale=1.5, size=6), games, seed)
    wins[rng.random(wins.shape) < 0.2] = 0
    assert np.abs(fit(wins).values - independent_fit(wins)).max() < 1e-6


def test_probabilities_that_follow_strengths_give_them_back() -> None:
    strengths = np.array([1.0, 0.2, -0.3, -0.9])
    exact = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    np.fill_diagonal(exact, 0)
    fitted = fit(exact, prior_games=1e-9)
    assert np.abs(fitted.values - strengths).max() < 1e-6
    assert fitted.order == [0, 1, 2, 3]


def test_strengths_scatter_by_their_standard_errors() -> None:
    """Simulate many tournaments."""
    truth = np.linspace(1, -1, 8)
    fits = [fit(simulated(truth, 20, seed)) for seed in range(400)]
    scatter = np.std([f.values for f in fits], axis=0)
    stated = np.mean([f.standard_errors for f in fits], axis=0)
    assert stated == pytest.approx(scatter, rel=0.12)
    assert np.mean([f.values for f in fits], axis=0) == pytest.approx(truth, abs=0.08)


@pytest.mark.parametrize("games", [4, 8, 32])
def test_a_known_order_is_recovered_at_the_rate_theory_predicts(games: int) -> None:
    """Two strengths d apart come out in order with probability Phi(d / se), se from the Fisher information."""
    truth = np.linspace(1, -1, 8)
    expected = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    information = -games * expected * (1 - expected)
    np.fill_diagonal(information, 0)
    np.fill_diagonal(information, -information.sum(axis=1))
    covariance = np.linalg.pinv(information)
    variances = [covariance[i, i] + covariance[i + 1, i + 1] - 2 * covariance[i, i + 1] for i in range(7)]
    predicted = norm.cdf(-np.diff(truth) / np.sqrt(variances)).mean()
    steps = np.array([np.diff(fit(simulated(truth, games, seed)).values) for seed in range(400)])
    # Few games often leave two as good as each other, and then either order is right half of the time.
    right = np.where(np.abs(steps) < 1e-9, 0.5, steps < 0)
    assert right.mean() == pytest.approx(predicted, abs=0.02)


def test_a_response_that_won_everything_has_a_finite_strength() -> None:
    wins = np.triu(np.ones((4, 4)), 1)
    fitted = fit(wins)
    assert np.isfinite(fitted.values).all()
    assert np.isfinite(fitted.standard_errors).all()
    assert fitted.order == [0, 1, 2, 3]
    assert fitted.values.sum() == pytest.approx(0, abs=1e-9)


def test_equal_responses_keep_their_order_and_uncompared_ones_are_average() -> None:
    assert fit(np.zeros((3, 3))).order == [0, 1, 2]
    wins = np.zeros((3, 3))
    wins[0, 1] = wins[1, 0] = 0.5
    assert fit(wins).values == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_reference_is_compared_and_not_reported() -> None:
    wins = np.zeros((4, 4))
    for i, p in enumerate((0.9, 0.5, 0.2)):
        wins[i, 3], wins[3, i] = p, 1 - p
    fitted = fit(wins, ranked=3, prior_games=1e-9)
    logits = np.log([9, 1, 0.25])
    assert fitted.values == pytest.approx(logits - logits.mean(), abs=1e-6)
    assert len(fitted.standard_errors) == 3


@pytest.mark.parametrize("wins", [np.zeros((2, 3)), np.full((2, 2), np.nan), -np.ones((2, 2)), np.zeros(3)])
def test_a_matrix_that_cannot_hold_wins_is_refused(wins: Matrix) -> None:
    with pytest.raises(ValueError, match="square matrix"):
        fit(wins)


def test_a_fit_without_prior_is_refused() -> None:
    with pytest.raises(ValueError, match="prior_games"):
        fit(np.zeros((2, 2)), prior_games=0)


def test_cycles_are_counted_among_compared_triples() -> None:
    order = np.array([[np.nan, 0.9, 0.8], [0.1, np.nan, 0.7], [0.2, 0.3, np.nan]])
    assert cycle_rate(order) == 0
    circle = np.array([[np.nan, 0.9, 0.1], [0.1, np.nan, 0.9], [0.9, 0.1, np.nan]])
    assert cycle_rate(circle) == 1
    assert cycle_rate(np.full((3, 3), np.nan)) is None
    four = np.full((4, 4), np.nan)
    four[:3, :3] = circle
    four[3, 0], four[0, 3], four[3, 1], four[1, 3] = 0.9, 0.1, 0.9, 0.1
    assert cycle_rate(four) == pytest.approx(1 / 2), "0 1 2 is a cycle, 0 1 3 is none, the others never met"


def margins_of(values: Matrix) -> Matrix:
    """Return the margins of all pairs, without noise."""
    margins = np.subtract.outer(values, values)
    np.fill_diagonal(margins, np.nan)
    return margins


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("seed", range(5))
def test_every_formula_recovers_an_order_without_noise(method: str, seed: int) -> None:
    values = np.random.default_rng(seed).normal(scale=2, size=7)
    assert order(score(margins_of(values), method)) == np.argsort(-values).tolist()  # type: ignore[arg-type]


def test_least_squares_of_a_round_robin_is_the_mean_of_margins() -> None:
    rng = np.random.default_rng(1)
    margins = np.triu(rng.normal(size=(6, 6)), 1)
    margins -= margins.T
    np.fill_diagonal(margins, np.nan)
    assert least_squares(margins) == pytest.approx(np.nansum(margins, axis=1) / 6)


def test_least_squares_fits_margins_along_a_chain_and_leaves_uncompared_responses_at_zero() -> None:
    margins = margin_matrix(5, {(0, 1): 1.0, (1, 2): 2.0, (2, 3): -4.0})
    assert least_squares(margins) == pytest.approx([1.0, 0.0, -2.0, 2.0, 0.0] - np.array([0.25] * 4 + [0]))


def test_mean_wins_of_a_response_without_comparisons_is_one_half() -> None:
    margins = margin_matrix(4, {(0, 1): 2.0, (0, 2): 0.0})
    win = 1 / (1 + np.exp(-2))
    assert mean_wins(margins) == pytest.approx([(win + 0.5) / 2, 1 - win, 0.5, 0.5])


def test_expected_wins_are_those_of_a_round_robin() -> None:
    strengths = np.log([1.0, 2.0, 5.0])
    assert expected_wins(strengths) == pytest.approx([(1 / 3 + 1 / 6) / 2, (2 / 3 + 2 / 7) / 2, (5 / 6 + 5 / 7) / 2])


def test_order_of_a_round_robin_by_strengths_is_that_of_mean_wins() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        margins = np.triu(rng.normal(scale=2, size=(6, 6)), 1)
        margins -= margins.T
        np.fill_diagonal(margins, np.nan)
        assert order(score(margins, "strengths")) == order(score(margins, "mean_wins"))


def test_scores_that_differ_by_rounding_keep_their_order() -> None:
    assert order(np.array([0.1 + 0.2, 0.3, 1.0, 0.3])) == [2, 0, 1, 3]


def test_a_ranking_orders_by_strengths_and_leaves_references_out() -> None:
    rng = np.random.default_rng(2)
    margins = np.triu(rng.normal(scale=2, size=(5, 5)), 1)
    margins -= margins.T
    np.fill_diagonal(margins, np.nan)
    ranking = rank(margins)
    assert ranking.order == order(score(margins, "strengths")) == order(ranking.strengths.values)
    assert ranking.strengths.values == pytest.approx(fit(np.nan_to_num(sigmoid(margins))).values)
    with_reference = rank(margins, ranked=4)
    assert len(with_reference.order) == len(with_reference.strengths.values) == 4


@pytest.mark.parametrize("scores", [[50.0, 52.0, 49.0], [500.0, 501.0], [0.0, 2000.0, -2000.0]])
def test_scores_of_any_size_have_errors_of_their_differences(scores: list[float]) -> None:
    ranking, moved = rank_scores(np.array(scores), 2.0), rank_scores(np.array(scores) - 40, 2.0)
    assert ranking.strengths.values == pytest.approx((np.array(scores) - np.mean(scores)) / 2)
    assert np.isfinite(ranking.strengths.standard_errors).all()
    assert (ranking.strengths.standard_errors > 0.1).all()
    assert moved.strengths.standard_errors == pytest.approx(ranking.strengths.standard_errors)


def test_extreme_margins_have_finite_scores() -> None:
    margins = margin_matrix(3, {(0, 1): 800.0, (1, 2): 800.0, (0, 2): 1e4})
    for method in METHODS:
        assert np.isfinite(score(margins, method)).all()
    assert rank(margins).order == [0, 1, 2]


def test_empty_responses_are_placed_below_the_worst_and_tie() -> None:
    margins = margin_matrix(3, {(0, 1): 1.0, (0, 2): -2.0, (1, 2): 0.5})
    judged = rank(margins)
    ranking = place_last(judged, [0, 3])
    others = ranking.strengths.values[[1, 2, 4]]
    assert others - others.mean() == pytest.approx(judged.strengths.values)
    assert ranking.strengths.values[[0, 3]] == pytest.approx([others.min() - 3] * 2)
    assert ranking.strengths.values.mean() == pytest.approx(0)
    assert ranking.order == [*(np.array([1, 2, 4])[judged.order]), 0, 3]
    assert ranking.margins[np.ix_([1, 2, 4], [1, 2, 4])] == pytest.approx(margins, nan_ok=True)
    assert ranking.margins[0, 3] == 0
    assert np.isnan(np.diag(ranking.margins)).all()
    off = ~np.eye(5, dtype=bool)
    assert ranking.margins[off] == pytest.approx(-ranking.margins.T[off])
    assert np.isfinite(ranking.strengths.standard_errors).all()


def test_errors_may_be_left_out() -> None:
    scores = np.array([1.0, 3.0, -2.0])
    without = rank_scores(scores, 2.0, has_errors=False).strengths
    assert without.values.tolist() == rank_scores(scores, 2.0).strengths.values.tolist()
    assert np.isnan(without.standard_errors).all()
