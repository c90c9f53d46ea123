"""What is asked (two responses to one prompt) and what is answered (which is better, and how surely)."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["a", "b", "tie"]
SwapMode = Literal["on", "off", "auto"]
Strategy = Literal["round_robin", "swiss", "knockout", "reference"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt and the two responses to be compared."""

    prompt: str
    response_a: str
    response_b: str

    def swapped(self) -> "Comparison":
        return Comparison(self.prompt, self.response_b, self.response_a)


@dataclass(frozen=True, slots=True)
class Preference:
    """The answer to a comparison.

    margin: calibrated log-odds that A is better; p_a = sigmoid(margin), p_b = sigmoid(-margin).
    order_margins: the uncalibrated margin for A of each order that was read: (A first,) or
        (A first, A second). Their difference is the model's position bias on this comparison.
    """

    p_a: float
    p_b: float
    margin: float
    order_margins: tuple[float, ...]

    @property
    def preferred(self) -> Verdict:
        if self.margin == 0:
            return "tie"
        return "a" if self.margin > 0 else "b"

    @property
    def orders_disagree(self) -> bool:
        """True when both orders were read and each favours another response."""
        return len(self.order_margins) == 2 and self.order_margins[0] * self.order_margins[1] < 0
