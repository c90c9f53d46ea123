"""Fit one temperature for a model, so that eight in ten responses with a probability of 0.8 are the better ones.

Needs scipy, which serving does not need.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from tinyrm.comparison import Preference
from tinyrm.errors import InvalidInput

LOG_TEMPERATURE_BOUNDS = (-4.0, 4.0)


def raw_margins(preferences: Sequence[Preference]) -> NDArray[np.float64]:
    """Return the uncalibrated margins [preferences], averaged over the scored orders."""
    return np.array([np.mean(preference.order_margins) for preference in preferences])


def fit_temperature(margins: NDArray[np.float64]) -> float:
    """Return the T that minimises the mean of log(1 + exp(-margin / T)) (arXiv 1706.04599).

    margins: uncalibrated; positive for the response that is known to be better.

    If there is no minimum, for example because all margins are right, T is at the end of its range; see `is_bounded`.
    """

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margins / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded").x))


def is_bounded(temperature: float) -> bool:
    """Return whether a fitted temperature is at the end of its range, so that the pairs do not determine it."""
    return abs(math.log(temperature)) > max(LOG_TEMPERATURE_BOUNDS) - 0.01


def refuse_bounded(temperature: float, pairs: int) -> None:
    """Raise InvalidInput if the pairs do not determine a temperature.

    pairs: how many there were.
    """
    if is_bounded(temperature):
        raise InvalidInput(
            f"no temperature fits these {pairs} pairs: the likelihood grows up to {temperature:.2g}; "
            "use more pairs, and some that the model judges wrongly"
        )
