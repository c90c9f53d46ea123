"""Fit one temperature for a model, so that eight in ten responses with a probability of 0.8 are the better ones.

Needs scipy, which serving does not need.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from tinyrm.comparison import Preference
from tinyrm.confidence import MAX_LOG_STD
from tinyrm.errors import InvalidInput
from tinyrm.verdicts import Label

log = logging.getLogger(__name__)

LOG_TEMPERATURE_BOUNDS = (-4.0, 4.0)
# With fewer pairs, or fewer that are judged wrongly, the error of log T is so large that T = 1 is the better guess.
MIN_PAIRS = 50
MIN_WRONG = 5
# 95 % quantile of chi-squared with one degree of freedom: twice the gain in log-likelihood that chance seldom exceeds.
MIN_GAIN = 3.841


class TemperatureFit(NamedTuple):
    """A temperature that pairs determine.

    one_order: the temperature that fits one order alone; None for a model that reads responses alone, or if the pairs
        determine none.
    log_std: standard error of its logarithm.
    pairs: how many there were; `wrong` of them are judged wrongly. Of pairs with a probability, that is the number to
        expect: one of a tie in two.
    """

    temperature: float
    one_order: float | None
    log_std: float
    pairs: int
    wrong: int


def raw_margins(preferences: Sequence[Preference]) -> NDArray[np.float64]:
    """Return the uncalibrated margins [preferences], averaged over the scored orders."""
    return np.array([np.mean(preference.order_margins) for preference in preferences])


class Outcomes(NamedTuple):
    """What is known of pairs, [pairs] each: the probability that A is better, and weights of mean 1."""

    targets: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, labels: Sequence[Label] | None, pairs: int) -> "Outcomes":
        """labels: of each pair, such as the pairs themselves; None: A is the better one of all."""
        if labels is None:
            return cls(np.ones(pairs), np.ones(pairs))
        weights = np.array([label.weight for label in labels])
        return cls(np.array([label.target for label in labels]), weights / weights.mean() if len(weights) else weights)

    def losses(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weighted cross-entropies of calibrated margins, [pairs]: log(1 + exp(-margin)) of a verdict."""
        right, wrong = np.logaddexp(0, -margins), np.logaddexp(0, margins)
        return self.weights * (self.targets * right + (1 - self.targets) * wrong)

    def wrong(self, margins: NDArray[np.float64]) -> int:
        """Return how many pairs are judged wrongly, as far as is known. No preference is wrong, too."""
        return round(float(np.sum(np.where(margins > 0, 1 - self.targets, self.targets))))

    def part(self, places: Sequence[int]) -> "Outcomes":
        weights = self.weights[places]
        return Outcomes(self.targets[places], weights / weights.mean() if len(weights) else weights)


def fit_temperature(margins: NDArray[np.float64], outcomes: Outcomes | None = None) -> float:
    """Return the T that minimises the mean of log(1 + exp(-margin / T)) (arXiv 1706.04599).

    margins: uncalibrated; positive for A.
    outcomes: of the same pairs; None: A is the better response of all. With probabilities the loss is cross-entropy.

    If there is no minimum, for example because all margins are right, T is at the end of its range; see `is_bounded`.
    """
    known = outcomes or Outcomes.of(None, len(margins))

    def loss(log_temperature: float) -> float:
        return float(known.losses(margins / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded").x))


def is_bounded(temperature: float) -> bool:
    """Return whether a fitted temperature is at the end of its range, so that the pairs do not determine it."""
    return abs(math.log(temperature)) > max(LOG_TEMPERATURE_BOUNDS) - 0.01


def determine_temperature(preferences: Sequence[Preference], labels: Sequence[Label] | None = None) -> TemperatureFit:
    """Return the temperature of `fit_temperature` if the pairs determine it, and how well.

    A few pairs that are all judged rightly would make every probability 0 or 1.

    preferences: from both orders or from single scores.
    labels: of the same pairs, the probability that A is better and a weight; None: A is the better response of all.

    Raises InvalidInput with the reason.
    """
    return determine(preferences, Outcomes.of(labels, len(preferences)))


def determine(preferences: Sequence[Preference], outcomes: Outcomes) -> TemperatureFit:
    margins = raw_margins(preferences)
    pairs, wrong = len(margins), outcomes.wrong(margins)
    fitted = fit_temperature(margins, outcomes) if pairs else 1.0
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
        # Of log T; the other term is 0 at the minimum.
        information = float(np.sum(outcomes.weights * x**2 * expit(x) * expit(-x)))
        log_std = 1 / math.sqrt(information)
        orders = np.array([preference.order_margins for preference in preferences])
        of_orders = Outcomes(*(np.repeat(values, orders.shape[1]) for values in outcomes))
        one_order = fit_temperature(orders.ravel(), of_orders) if orders.shape[1] == 2 else None
        if one_order and is_bounded(one_order):
            one_order = None
        if log_std <= MAX_LOG_STD:
            return TemperatureFit(fitted, one_order, log_std, pairs, wrong)
        reason = f"{fitted:.2g} is uncertain by a factor of {math.exp(min(log_std, 9)):.1f}; use more pairs"
    raise InvalidInput(f"no temperature fits these {pairs} pairs: {reason}")


def determine_domains(
    preferences: Sequence[Preference],
    domains: Sequence[str],
    temperature: float,
    labels: Sequence[Label] | None = None,
) -> dict[str, TemperatureFit]:
    """Return the temperatures of domains, if some need their own, by the rules of `determine_temperature` for each.

    A domain needs one if a likelihood-ratio test at 5 % rejects, on its pairs, the temperature that it shares with
    others. The one that gains most is parted first; the others are fitted without it, and tested again.

    domains: of each preference.
    temperature: that of all domains; all have it where none needs its own.
    labels: as of `determine_temperature`.
    """
    outcomes = Outcomes.of(labels, len(preferences))
    of_domain: dict[str, list[int]] = {}
    for place, name in enumerate(domains):
        of_domain.setdefault(name, []).append(place)

    def determine_at(places: Sequence[int]) -> TemperatureFit:
        return determine([preferences[place] for place in places], outcomes.part(places))

    own = those_that_fit(of_domain, determine_at)

    def gain(name: str) -> float:
        places = of_domain[name]
        margins, values = raw_margins([preferences[i] for i in places]), (temperature, own[name].temperature)
        before, after = (outcomes.part(places).losses(margins / value).sum() for value in values)
        return 2 * float(before - after)

    fits: dict[str, TemperatureFit] = {}
    shared: TemperatureFit | None = None
    while candidates := own.keys() - fits.keys():
        best = max(sorted(candidates), key=gain)
        if gain(best) <= MIN_GAIN:
            break
        fits[best] = own[best]
        try:
            shared = determine_at([place for name, part in of_domain.items() if name not in fits for place in part])
        except InvalidInput:
            break  # too few are left: they keep what they had
        temperature = shared.temperature
    return fits | (dict.fromkeys(of_domain.keys() - fits.keys(), shared) if shared else {})


def those_that_fit(
    of_domain: Mapping[str, list[int]], determine_at: Callable[[Sequence[int]], TemperatureFit]
) -> dict[str, TemperatureFit]:
    """Return the temperature of each domain whose pairs determine one."""
    own: dict[str, TemperatureFit] = {}
    for name, places in sorted(of_domain.items()):
        try:
            own[name] = determine_at(places)
        except InvalidInput as error:
            log.warning("domain %s: %s; it has no temperature of its own", name, error)
    return own
