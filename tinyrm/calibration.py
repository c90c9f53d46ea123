"""Fit one temperature for a model, so that eight in ten responses with a probability of 0.8 are the better ones.

Needs scipy, which serving does not need.
"""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from tinyrm.comparison import Preference
from tinyrm.confidence import MAX_LOG_STD
from tinyrm.errors import InvalidInput

log = logging.getLogger(__name__)

LOG_TEMPERATURE_BOUNDS = (-4.0, 4.0)
# With fewer pairs, or fewer that are judged wrongly, the error of log T is so large that T = 1 is the better guess.
MIN_PAIRS = 50
MIN_WRONG = 5
# 95 % quantile of chi-squared with one degree of freedom: twice the gain in log-likelihood that chance seldom exceeds.
MIN_GAIN = 3.841


class TemperatureFit(NamedTuple):
    """A temperature that pairs determine.

    one_order: the temperature that would fit one order alone; None for a model that reads responses alone.
    log_std: standard error of its logarithm.
    pairs: how many there were; `wrong` of them are judged wrongly.
    """

    temperature: float
    one_order: float | None
    log_std: float
    pairs: int
    wrong: int


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


def determine_temperature(preferences: Sequence[Preference]) -> TemperatureFit:
    """Return the temperature of `fit_temperature` if the pairs determine it, and how well.

    A few pairs that are all judged rightly would make every probability 0 or 1.

    preferences: from both orders or from single scores, the response that is known to be better as A.

    Raises InvalidInput with the reason.
    """
    margins = raw_margins(preferences)
    pairs, wrong = len(margins), int(np.sum(margins <= 0))
    fitted = fit_temperature(margins) if pairs else 1.0
    if pairs < MIN_PAIRS:
        reason = f"at least {MIN_PAIRS} are needed"
    elif is_bounded(fitted):
        reason = (
            f"the likelihood grows up to {fitted:.2g}; use more pairs, and some that the model judges wrongly"
            if fitted < 1
            else "the model judges them no better than chance"
        )
    elif wrong < MIN_WRONG:
        reason = f"only {wrong} of them are judged wrongly, and {MIN_WRONG} are needed to see how sure the model may be"
    else:
        x = margins / fitted
        information = float(np.sum(x**2 * expit(x) * expit(-x)))  # of log T; the other term is 0 at the minimum
        log_std = 1 / math.sqrt(information)
        orders = np.array([preference.order_margins for preference in preferences])
        one_order = fit_temperature(orders.ravel()) if orders.shape[1] == 2 else None
        if log_std <= MAX_LOG_STD:
            return TemperatureFit(fitted, one_order, log_std, pairs, wrong)
        reason = f"{fitted:.2g} is uncertain by a factor of {math.exp(min(log_std, 9)):.1f}; use more pairs"
    raise InvalidInput(f"no temperature fits these {pairs} pairs: {reason}")


def determine_domains(
    preferences: Sequence[Preference], domains: Sequence[str], temperature: float
) -> dict[str, TemperatureFit]:
    """Return the temperatures of domains, if some need their own, by the rules of `determine_temperature` for each.

    A domain needs one if a likelihood-ratio test at 5 % rejects, on its pairs, the temperature that it shares with
    others. The one that gains most is parted first; the others are fitted without it, and tested again.

    domains: of each preference.
    temperature: that of all domains; all have it where none needs its own.
    """
    of_domain: dict[str, list[Preference]] = {}
    for preference, name in zip(preferences, domains, strict=True):
        of_domain.setdefault(name, []).append(preference)
    own: dict[str, TemperatureFit] = {}
    for name, part in sorted(of_domain.items()):
        try:
            own[name] = determine_temperature(part)
        except InvalidInput as error:
            log.warning("domain %s: %s; it has no temperature of its own", name, error)

    def gain(name: str) -> float:
        margins, values = raw_margins(of_domain[name]), (temperature, own[name].temperature)
        before, after = (np.logaddexp(0, -margins / value).sum() for value in values)
        return 2 * float(before - after)

    fits: dict[str, TemperatureFit] = {}
    shared: TemperatureFit | None = None
    while candidates := own.keys() - fits.keys():
        best = max(sorted(candidates), key=gain)
        if gain(best) <= MIN_GAIN:
            break
        fits[best] = own[best]
        rest = [each for name, part in of_domain.items() if name not in fits for each in part]
        try:
            shared = determine_temperature(rest)
        except InvalidInput:
            break  # too few are left: they keep what they had
        temperature = shared.temperature
    return fits | (dict.fromkeys(of_domain.keys() - fits.keys(), shared) if shared else {})
