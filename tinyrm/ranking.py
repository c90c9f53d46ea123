"""Pairwise results of n responses -> strengths, standard errors, order.

The model is Bradley-Terry: P(i beats j) = sigmoid(s_i - s_j). A result may be a probability: it counts as that share of
a game won. Strengths maximise

    sum over i, j of wins[i, j] * log sigmoid(s_i - s_j)  +  PRIOR_GAMES * sum over i of log sigmoid(s_i) sigmoid(-s_i)

where the second term is a few games, half of them won, against an opponent of strength 0: with it there is always one
maximum, even if a response won every game or met nobody. (Caron and Doucet 2012 put a prior in the same place.)
The sum is concave; Newton's method finds the maximum and leaves the Hessian for the standard errors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

PRIOR_GAMES = 0.02
TOLERANCE = 1e-10
MOST_STEPS = 100


@dataclass(frozen=True, slots=True)
class Strengths:
    """values [n]: log-odds, mean 0. standard_errors [n]: of values, as if each comparison were one game."""

    values: Matrix
    standard_errors: Matrix

    @property
    def order(self) -> list[int]:
        """Best first; equals as they were given."""
        return np.argsort(-self.values, kind="stable").tolist()


def fit(wins: Matrix, *, ranked: int | None = None, prior_games: float = PRIOR_GAMES) -> Strengths:
    """Strengths from wins [n, n]: how often i beat j, shares of games included; zero where none met.

    ranked: how many of them are reported, the first ones; the others (a reference) only met them. prior_games: of each
    against the imagined opponent. Raises ValueError for other shapes, negative or non-finite wins, or no prior.
    """
    wins = np.asarray(wins, dtype=np.float64)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or not np.isfinite(wins).all() or (wins < 0).any():
        raise ValueError("wins has to be a square matrix of finite numbers that are not negative")
    if not prior_games > 0:
        raise ValueError("prior_games has to be positive, or the strengths would have no scale")
    count = len(wins) if ranked is None else ranked
    strengths = _maximise(wins, prior_games)
    centre = np.eye(count, len(wins))
    centre[:, :count] -= 1 / max(count, 1)
    _, hessian = _slope(strengths, wins, prior_games)
    covariance = centre @ np.linalg.inv(hessian) @ centre.T
    return Strengths(centre @ strengths, np.sqrt(np.clip(np.diag(covariance), 0, None)))


def _maximise(wins: Matrix, prior_games: float) -> Matrix:
    strengths = np.zeros(len(wins))
    for _ in range(MOST_STEPS):
        gradient, hessian = _slope(strengths, wins, prior_games)
        step = np.linalg.solve(hessian, gradient)
        # A full step may overshoot where the curve is flat; half of it may not.
        before = _log_likelihood(strengths, wins, prior_games)
        while _log_likelihood(strengths + step, wins, prior_games) < before - TOLERANCE:
            step /= 2
        strengths = strengths + step
        if np.abs(step).max(initial=0) < TOLERANCE:
            break
    return strengths


def _log_likelihood(strengths: Matrix, wins: Matrix, prior_games: float) -> float:
    differences = strengths[:, None] - strengths[None, :]
    games = -(wins * np.logaddexp(0, -differences)).sum()
    prior = -prior_games / 2 * (np.logaddexp(0, -strengths) + np.logaddexp(0, strengths)).sum()
    return float(games + prior)


def _slope(strengths: Matrix, wins: Matrix, prior_games: float) -> tuple[Matrix, Matrix]:
    """Gradient [n] and negative Hessian [n, n] of the log-likelihood."""
    games = wins + wins.T
    expected = _sigmoid(strengths[:, None] - strengths[None, :])
    own = _sigmoid(strengths)
    gradient = (wins - games * expected).sum(axis=1) + prior_games * (0.5 - own)
    information = games * expected * (1 - expected)
    np.fill_diagonal(information, 0)
    diagonal = information.sum(axis=1) + prior_games * own * (1 - own)
    return gradient, np.diag(diagonal) - information


def _sigmoid(x: Matrix) -> Matrix:
    return np.exp(-np.logaddexp(0, -x))


def cycle_rate(probabilities: Matrix) -> float | None:
    """Share of triples that contradict themselves (i beats j beats k beats i), among those whose three pairs all met.

    probabilities [n, n]: that i beats j, NaN where they did not meet. None if no triple met.
    """
    met = ~np.isnan(probabilities)
    np.fill_diagonal(met, val=False)
    beats = np.where(met, probabilities, 0) > 0.5
    # A closed walk of three steps is a triple seen from each of its corners, and if undirected, both ways round.
    triples = np.trace(np.linalg.matrix_power(met.astype(np.float64), 3)) / 6
    cycles = np.trace(np.linalg.matrix_power(beats.astype(np.float64), 3)) / 3
    return float(cycles / triples) if triples else None
