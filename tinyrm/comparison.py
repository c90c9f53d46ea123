"""Two responses to one prompt, and the result of comparing them."""

import math
from dataclasses import dataclass
from typing import Literal

from tinyrm.confidence import UNCALIBRATED, Confidence, Temperature

Verdict = Literal["a", "b", "tie"]
SwapMode = Literal["on", "off", "auto"]
Strategy = Literal["round_robin", "swiss", "knockout", "reference"]
GroupStrategy = Literal[Strategy, "cascade"]
# What happens to a response without a text: it is last of its group, or judged as a blank.
EmptyMode = Literal["last", "judge"]
# How far an empty response is below the worst of the others, in log-odds: it loses to that one in 95 of 100 cases.
EMPTY_LOG_ODDS = 3.0
# Responses that a cascade compares with each other: 12 sequences in both orders.
CASCADE_TOP = 4


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt and the two responses to compare."""

    prompt: str
    response_a: str
    response_b: str

    def swapped(self) -> "Comparison":
        return Comparison(self.prompt, self.response_b, self.response_a)


@dataclass(frozen=True, slots=True)
class Preference:
    """The result of a comparison.

    p_a: probability that A is better, sigmoid(margin).
    p_b: probability that B is better, sigmoid(-margin).
    margin: calibrated log-odds that A is better.
    order_margins: the uncalibrated margin for A in each scored order: (A first,) or (A first, B first). Their
        difference is the model's position bias on this comparison. One margin if responses are scored one by one.
    temperature: what divided these.
    """

    p_a: float
    p_b: float
    margin: float
    order_margins: tuple[float, ...]
    temperature: Temperature = UNCALIBRATED

    @property
    def preferred(self) -> Verdict:
        if self.margin == 0:
            return "tie"
        return "a" if self.margin > 0 else "b"

    @property
    def confidence(self) -> Confidence:
        """How sure the preference is; `tinyrm.confidence` has the formula."""
        return self.temperature.confidence(self.order_margins)

    @property
    def order_probabilities(self) -> tuple[float, ...]:
        """P(A is better) in each scored order, as that order alone would give it: its own bias is not cancelled."""
        divisor = self.temperature.of_orders(1)
        return tuple(probabilities(margin / divisor)[0] for margin in self.order_margins)

    @property
    def orders_disagree(self) -> bool:
        """Whether both orders were scored and prefer different responses."""
        return len(self.order_margins) == 2 and self.order_margins[0] * self.order_margins[1] < 0


def probabilities(margin: float) -> tuple[float, float]:
    """Return sigmoid(margin) and sigmoid(-margin), without the cost of an array for each comparison."""
    small = math.exp(-abs(margin))
    winner, loser = 1 / (1 + small), small / (1 + small)
    return (loser, winner) if margin < 0 else (winner, loser)
