"""Turn comparisons of n responses into scores and an order.

All formulas start from `margins` [n, n]: the calibrated log-odds that response i beats response j, NaN where the two
were not compared, margins[j, i] = -margins[i, j]. With P = sigmoid(margins):

    strengths    Bradley-Terry: P(i beats j) = sigmoid(s_i - s_j), the s that maximise the likelihood of P
    mean_wins    mean of P(i beats j) over the j that i was compared with
    margins      least squares: the x that minimise the sum of (x_i - x_j - margins[i, j])^2

If every pair was compared, the order by strengths is that of the row sums of P, and x_i is the mean of row i of margins
(the 0 of i itself included). The difference: a probability saturates for a decisive comparison, a margin does not.

`rank` orders by strengths: in `/v1/rank`, in `Scorer.rank` and in the RewardBench 2 score. On real groups the three
formulas find the best response equally often (docs/results/ranking.md), and this order agrees with the reported
strengths and standard errors.

A probability counts as a won share of a game. Strengths maximise

    sum over i, j of wins[i, j] * log sigmoid(s_i - s_j)  +  PRIOR_GAMES * sum over i of log sigmoid(s_i) sigmoid(-s_i)

where the second term is a few games, half of them won, against an opponent of strength 0. It makes the maximum unique
and finite, even if a response won every game or was never compared. (Caron and Doucet 2012 use a prior in this place.)
The sum is concave; Newton's method finds the maximum and leaves the Hessian for the standard errors.

`settle` joins two models: one orders all responses, the other the best of them. `place_last` adds responses that no
model has judged: empty ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tinyrm.comparison import EMPTY_LOG_ODDS

Matrix = NDArray[np.float64]
Method = Literal["strengths", "mean_wins", "margins"]

PRIOR_GAMES = 0.02
TOLERANCE = 1e-10
MAX_STEPS = 100
# Scores closer than this are equal: sums of the same margins in another order differ in their last digits.
EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class Strengths:
    """Bradley-Terry strengths.

    values: [n], log-odds with mean 0.
    standard_errors: [n], those of `values`, as if each comparison were one game.
    """

    values: Matrix
    standard_errors: Matrix

    @property
    def order(self) -> list[int]:
        """Indices, best first; equal strengths keep their order."""
        return order(self.values)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Strengths and order of responses.

    margins: [n, n]; a reference is the last of the n.
    strengths: of the responses, without a reference.
    """

    margins: Matrix
    strengths: Strengths

    @property
    def order(self) -> list[int]:
        """Indices, best first; equal strengths keep their order."""
        return self.strengths.order

    @property
    def probabilities(self) -> Matrix:
        """[n, n]: that i beats j, NaN where they were not compared."""
        return sigmoid(self.margins)

    @property
    def cycle_rate(self) -> float | None:
        return cycle_rate(self.probabilities)


def rank(margins: Matrix, *, ranked: int | None = None) -> Ranking:
    """Return the strengths and the order of the first `ranked` of n; the others are references. None ranks all."""
    return Ranking(margins, fit(np.nan_to_num(sigmoid(margins)), ranked=ranked))


def rank_scores(scores: Matrix, temperature: float, *, ranked: int | None = None, has_errors: bool = True) -> Ranking:
    """Return the ranking of responses that a model scored one by one.

    Strengths are exactly scores [n] / temperature, moved to mean 0: there is nothing to fit. Standard errors are those
    of `rank` for the same margins, as if each pair were one game: its prior keeps them finite, however far apart the
    scores are.

    ranked: as in `rank`.
    has_errors: whether standard errors are computed, which takes seconds for a thousand responses; NaN without.
    """
    values = np.asarray(scores, dtype=np.float64) / temperature
    margins = values[:, None] - values
    np.fill_diagonal(margins, np.nan)
    own = values[:ranked]
    errors = rank(margins, ranked=ranked).strengths.standard_errors if has_errors else np.full(len(own), np.nan)
    return Ranking(margins, Strengths(own - own.mean() if len(own) else own, errors))


def settle(ranking: Ranking, margins: Matrix) -> Ranking:
    """Return the ranking of a cascade: a second model compares the best k of those that a first one has ranked.

    ranking: of all n responses, by the first model.
    margins: [k, k] of the second model, 2 <= k <= n, of the responses `ranking.order[:k]` in that order; every pair is
        compared.

    With s the strengths of `ranking`, K its best k, and r the Bradley-Terry strengths of `margins`, which have mean 0:

        margins      those of the second model within K, of the first elsewhere
        strengths    r[i] + max(mean of s over K, min of s over K - min of r)  for i in K, s[i] for the others;
                     minus their mean over all n

    So K is in the order of the second model, and the others, which are not above K, are in that of the first. The
    second model decides how far the k are apart, the first where they are among all: at the mean that it gave them, or
    higher if the least of them would fall below the least strength that the first model gave to one of K. Where the
    first model has a tie at the edge of K, a tie may remain. If k = n, the result is `rank(margins)`.

    The standard errors are those of `rank` for these margins, as if each of the n (n - 1) / 2 pairs were one game.

    Raises ValueError for margins of other shapes, or without one of the pairs.
    """
    n, k = len(ranking.strengths.values), len(margins)
    if margins.shape != (k, k) or not 2 <= k <= n or np.isnan(margins[np.triu_indices(k, 1)]).any():
        raise ValueError(f"margins must be those of all pairs of the best k of {n}, not {margins.shape}")
    best = ranking.order[:k]
    merged = ranking.margins.copy()
    merged[np.ix_(best, best)] = margins
    fitted = rank(merged)
    if k == n:
        return fitted
    own, settled = ranking.strengths.values, rank(margins).strengths.values
    strengths = own.copy()
    strengths[best] = settled + max(own[best].mean(), own[best].min() - settled.min())
    return Ranking(merged, Strengths(strengths - strengths.mean(), fitted.strengths.standard_errors))


def place_last(ranking: Ranking, empty: Sequence[int]) -> Ranking:
    """Return the ranking of n responses, some of them empty: those tie, below all others.

    ranking: of the other responses, in their order; its margins may have references after them.
    empty: indices of the empty ones among all n.

    With s the strengths of `ranking`, an empty response has the strength min(s) - EMPTY_LOG_ODDS, and 0 if all are
    empty; then all are moved to mean 0. Its margins are differences of strengths; with a reference, it is compared with
    that only: EMPTY_LOG_ODDS below the least margin there, or below a tie if that is less.
    """
    judged = ranking.strengths.values
    n, references = len(judged) + len(empty), len(ranking.margins) - len(judged)
    others = sorted(set(range(n)) - set(empty))
    strengths = np.full(n, judged.min() - EMPTY_LOG_ODDS if len(judged) else 0.0)
    strengths[others] = judged
    margins = np.full((n + references, n + references), np.nan)
    if references:
        against = ranking.margins[: len(judged), len(judged) :]
        margins[empty, n:] = against.min(initial=0.0) - EMPTY_LOG_ODDS
        margins[n:, empty] = -margins[empty, n:].T
    else:
        margins[empty] = strengths[empty][:, None] - strengths
        margins[:, empty] = strengths[:, None] - strengths[empty]
    places = [*others, *range(n, n + references)]
    margins[np.ix_(places, places)] = ranking.margins
    np.fill_diagonal(margins, np.nan)
    return Ranking(margins, Strengths(strengths - strengths.mean(), rank(margins, ranked=n).strengths.standard_errors))


def score(margins: Matrix, method: Method) -> Matrix:
    """Return one score for each response by the named formula; higher is better."""
    return METHODS[method](margins)


def order(scores: Matrix) -> list[int]:
    """Return the indices of the scores, highest first; equal scores keep their order."""
    places: list[int] = np.argsort(-np.round(scores / EQUAL), kind="stable").tolist()
    return places


def margin_matrix(n: int, margins: Mapping[tuple[int, int], float]) -> Matrix:
    """Return margins [n, n] of the pairs (i, j) that were compared."""
    matrix = np.full((n, n), np.nan)
    for (i, j), margin in margins.items():
        matrix[i, j], matrix[j, i] = margin, -margin
    return matrix


def least_squares(margins: Matrix) -> Matrix:
    """Return the scores whose differences fit the margins best: log-odds, mean 0 among responses that are connected."""
    compared = ~np.isnan(margins)
    laplacian = np.diag(compared.sum(axis=1)) - compared.astype(np.float64)
    # The solution of least norm: what the comparisons do not determine is 0.
    solution: Matrix = np.linalg.lstsq(laplacian, np.nansum(margins, axis=1), rcond=None)[0]
    return solution


def mean_wins(margins: Matrix) -> Matrix:
    """Return the mean probability of each response to beat those it was compared with; 0.5 without a comparison."""
    compared = (~np.isnan(margins)).sum(axis=1)
    means: Matrix = np.where(compared, np.nansum(sigmoid(margins), axis=1) / np.maximum(compared, 1), 0.5)
    return means


def expected_wins(scores: Matrix) -> Matrix:
    """Return the mean probability of each response to beat another, from two or more scores that are log-odds."""
    probabilities = sigmoid(np.subtract.outer(scores, scores))
    means: Matrix = (probabilities.sum(axis=1) - 0.5) / (len(scores) - 1)
    return means


METHODS: Final[Mapping[Method, Callable[[Matrix], Matrix]]] = {
    "strengths": lambda margins: rank(margins).strengths.values,
    "mean_wins": mean_wins,
    "margins": least_squares,
}


def fit(wins: Matrix, *, ranked: int | None = None, prior_games: float = PRIOR_GAMES) -> Strengths:
    """Return Bradley-Terry strengths.

    wins: [n, n], how often i beat j, shares of games included; 0 where none was played.
    ranked: how many are reported, from the first; the others are references. None reports all.
    prior_games: games of each response against the opponent of the prior.

    Raises ValueError for other shapes, negative or non-finite wins, or no prior.
    """
    wins = np.asarray(wins, dtype=np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or not np.isfinite(wins).all() or (wins < 0).any():
        raise ValueError("wins must be a square matrix of finite numbers that are not negative")
    if not prior_games > 0:
        raise ValueError("prior_games must be positive, or the strengths would have no scale")
    strengths = np.zeros(len(wins))
    for _ in range(MAX_STEPS):
        gradient, hessian = _slope(strengths, wins, prior_games)
        step = np.linalg.solve(hessian, gradient)
        # A full step may overshoot where the curve is flat; half of it may not.
        before = _log_likelihood(strengths, wins, prior_games)
        while _log_likelihood(strengths + step, wins, prior_games) < before - TOLERANCE:
            step /= 2
        strengths = strengths + step
        if np.abs(step).max(initial=0) < TOLERANCE:
            break
    count = len(wins) if ranked is None else ranked
    centre = np.eye(count, len(wins))
    centre[:, :count] -= 1 / max(count, 1)
    _, hessian = _slope(strengths, wins, prior_games)
    covariance = centre @ np.linalg.inv(hessian) @ centre.T
    return Strengths(centre @ strengths, np.sqrt(np.clip(np.diag(covariance), 0, None)))


def _log_likelihood(strengths: Matrix, wins: Matrix, prior_games: float) -> float:
    differences = strengths[:, None] - strengths[None, :]
    games = -(wins * np.logaddexp(0, -differences)).sum()
    prior = -prior_games / 2 * (np.logaddexp(0, -strengths) + np.logaddexp(0, strengths)).sum()
    return float(games + prior)


def _slope(strengths: Matrix, wins: Matrix, prior_games: float) -> tuple[Matrix, Matrix]:
    """Return gradient [n] and negative Hessian [n, n] of the log-likelihood."""
    games = wins + wins.T
    expected = sigmoid(strengths[:, None] - strengths[None, :])
    own = sigmoid(strengths)
    gradient = (wins - games * expected).sum(axis=1) + prior_games * (0.5 - own)
    information = games * expected * (1 - expected)
    np.fill_diagonal(information, 0)
    diagonal = information.sum(axis=1) + prior_games * own * (1 - own)
    return gradient, np.diag(diagonal) - information


def sigmoid(x: Matrix) -> Matrix:
    """Return 1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    result: Matrix = np.where(x < 0, small, 1) / (1 + small)
    return result


def cycle_rate(probabilities: Matrix) -> float | None:
    """Return the share of triples that contradict themselves (i beats j beats k beats i), among those fully compared.

    probabilities: [n, n], that i beats j; NaN where they were not compared.

    Returns None without such a triple.
    """
    compared = ~np.isnan(probabilities)
    np.fill_diagonal(compared, val=False)
    beats = np.where(compared, probabilities, 0) > 0.5
    # A triple is three closed walks of three steps, one from each corner, or six if they may go both ways.
    triples = np.trace(np.linalg.matrix_power(compared.astype(np.float64), 3)) / 6
    cycles = np.trace(np.linalg.matrix_power(beats.astype(np.float64), 3)) / 3
    return float(cycles / triples) if triples else None
