"""A running service, evaluated through its client, as its callers use it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluation.target import Meter, Target
from tinyrm.client import Client, CompareItem, ItemError
from tinyrm.comparison import Comparison, Preference
from tinyrm.errors import InvalidInput
from tinyrm.readout import read_out
from tinyrm.spec import Spec


@dataclass(frozen=True, slots=True)
class ServiceScorer:
    """Send each order by itself, so that both can be reported; together they give what `swap: on` returns.

    served: temperature by which the service divides its margins.
    temperature: the one used here.
    """

    client: Client
    model: str
    served: float
    temperature: float
    meter: Meter

    def score(
        self, comparisons: Sequence[Comparison], instructions: Sequence[str], *, swap: bool = True
    ) -> list[Preference]:
        """Return a preference for each comparison.

        Raises CallFailed, and InvalidInput for a pair that the service refuses.
        """
        orders = 2 if swap else 1
        items: list[CompareItem] = [
            {
                "prompt": order.prompt,
                "response_a": order.response_a,
                "response_b": order.response_b,
                "instruction": instruction,
                "swap": "off",
                "model": self.model,
            }
            for comparison, instruction in zip(comparisons, instructions, strict=True)
            for order in (comparison, comparison.swapped())[:orders]
        ]
        margins = []
        for reply in self.client.compare_many(items):
            if isinstance(reply, ItemError):
                raise InvalidInput(f"the service refused a pair: {reply.type}: {reply.message}")
            self.meter.tokens += reply.usage.tokens
            self.meter.exact_flops += reply.usage.gflops * 1e9
            margins.append(reply.margin * self.served)
        # The first choice's logit is the margin and the second's 0: only their difference matters.
        return [
            read_out([[margin, 0.0] for margin in margins[i : i + orders]], self.temperature)
            for i in range(0, len(margins), orders)
        ]

    def at(self, temperature: float) -> "ServiceScorer":
        return replace(self, temperature=temperature)


def open_service(url: str, api_key: str | None = None) -> Target:
    """Open the default model of a running service. Raises CallFailed."""
    client = Client(url, api_key, timeout_s=600.0)
    card = next(card for card in client.models() if card.default)
    identity = f"{card.name}@{card.revision}"
    # The service does not publish its template; only instructions are used of this spec.
    spec = Spec(domains=card.domains, default_domain=card.default_domain, max_tokens=card.max_tokens)
    meter = Meter(paper_flops=None)
    scorer = ServiceScorer(client, identity, card.temperature, card.temperature, meter)
    return Target(identity, f"{card.engine} at {url}", spec, scorer, meter, client.close)
