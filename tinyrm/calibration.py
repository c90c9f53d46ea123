"""One temperature for a model, so that responses with a probability of 0.8 are the better ones eight times in ten.

Needs scipy, which serving does not.
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
    """Return the margins before calibration, averaged over the orders read: [preferences]."""
    return np.array([np.mean(preference.order_margins) for preference in preferences])


def fit_temperature(margins: NDArray[np.float64]) -> float:
    """Return the T that minimises the mean of log(1 + exp(-margin / T)) (arXiv 1706.04599).

    margins: uncalibrated, towards the response known to be better.

    If the margins allow no minimum, as when all of them are right, T is at the end of its range; see `is_bounded`.
    """

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margins / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded").x))


def is_bounded(temperature: float) -> bool:
    """Return whether a fitted temperature stands at the end of its range, so that the pairs determine none."""
    return abs(math.log(temperature)) > max(LOG_TEMPERATURE_BOUNDS) - 0.01


def refuse_bounded(temperature: float, pairs: int) -> None:
    """Raise InvalidInput if `pairs` pairs determine no temperature."""
    if is_bounded(temperature):
        raise InvalidInput(
            f"no temperature fits these {pairs} pairs: the likelihood grows up to {temperature:.2g}; "
            "use more pairs, some of them judged wrongly"
        )
