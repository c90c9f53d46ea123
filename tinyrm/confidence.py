"""How sure a preference is, in one of three words: the one definition for API, page, command line and library.

With z, the mean of the uncalibrated margins of the scored orders, T, the calibration temperature, and s, the standard
error of log T:

    p      probability of the preferred response: sigmoid(|z| / T)
    p_low  what it is at least: sigmoid(|z| / (T exp(1.96 s))), the lower end of the 95 % interval of p

    close    p_low < 0.55, or both orders were scored and prefer different responses
    leaning  p_low < 0.75
    clear    otherwise

The limits are shares of errors: at 0.55 nearly every second verdict is wrong, a toss-up that no user should act on; at
0.75 every fourth, halfway from a guess to a certainty. An uncertain T does not change the sign of z, so the interval of
p never reaches one half, and a limit must state what is close to it.

An uncertain temperature makes words more careful, and a temperature that no pairs determined counts as the least
certain one that a fit accepts. One order holds the bias for the first place, which only a second order cancels: T is
then the temperature that fits one order alone, where calibration pairs determined it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Confidence = Literal["close", "leaning", "clear"]

# Least probabilities of the preferred response.
LEANING, CLEAR = 0.55, 0.75
# Standard errors on each side of a 95 % interval.
INTERVAL: Final = 1.96
# The largest standard error of log T that a fit accepts: beyond it, T is uncertain by more than a factor of 1.6.
MAX_LOG_STD = 0.5


@dataclass(frozen=True, slots=True)
class Temperature:
    """What divides the margins of a model, and how well pairs determine it.

    log_std: standard error of its logarithm; None if no pairs determined it.
    one_order: what fits the margins of one order alone; None for a model that has no orders, or if unknown.
    divides_one_order: whether `one_order` divides these. In older bundles `value` does.
    """

    value: float = 1.0
    log_std: float | None = None
    one_order: float | None = None
    divides_one_order: bool = False

    def of_orders(self, orders: int) -> float:
        """Return what divides the mean margin of one order, or of both."""
        return self.one_order if orders == 1 and self.one_order and self.divides_one_order else self.value

    def confidence(self, order_margins: Sequence[float]) -> Confidence:
        """Return how sure a preference is.

        order_margins: uncalibrated, of the same response: one, or those of both orders.
        """
        if len(order_margins) == 2 and order_margins[0] * order_margins[1] < 0:
            return "close"
        divisor = self.one_order if len(order_margins) == 1 and self.one_order else self.value
        log_std = MAX_LOG_STD if self.log_std is None else self.log_std
        margin = abs(sum(order_margins)) / (len(order_margins) * divisor * math.exp(INTERVAL * log_std))
        p_low = 1 / (1 + math.exp(-margin))
        return "close" if p_low < LEANING else "leaning" if p_low < CLEAR else "clear"


UNCALIBRATED: Final = Temperature()


@dataclass(frozen=True, slots=True)
class Temperatures:
    """The temperatures of a model: those of domains whose calibration pairs need their own, and one for all others."""

    general: Temperature = UNCALIBRATED
    domains: Mapping[str, Temperature] = field(default_factory=dict)

    def of(self, domain: str) -> Temperature:
        """Return the temperature of a domain, by the name that `Spec.find_domain` returns."""
        return self.domains.get(domain, self.general)
