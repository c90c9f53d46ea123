"""A running service, evaluated through its client, as its callers use it."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from evaluation.target import AnyScorer, GroupTexts, Meter, ResponseScorer, SetScorer, Single, Target
from tinyrm.api import MAX_RESPONSES, ModelCard, RankReply, ScoreReply
from tinyrm.chat import BLANK, unrendered
from tinyrm.client import Client, CompareItem, ItemError
from tinyrm.client.calls import ScoreOptions
from tinyrm.comparison import Comparison, Preference
from tinyrm.confidence import Temperature
from tinyrm.errors import InvalidInput
from tinyrm.readout import read_out
from tinyrm.spec import Spec
from tinyrm.truncation import kept_under

# Enough that the service has whole batches to run.
CALLS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class ServiceScorer:
    """Send each order by itself, so that both can be reported; together they give what `swap: on` returns.

    temperature: the one used here; the service divides by its own.
    """

    client: Client
    card: ModelCard
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
                "prompt": unrendered(order.prompt),
                # As the integrations send an empty response, which the routes refuse.
                "response_a": order.response_a or BLANK,
                "response_b": order.response_b or BLANK,
                "swap": "off",
                **selection(self.card, instruction),
            }
            for comparison, instruction in zip(comparisons, instructions, strict=True)
            for order in (comparison, comparison.swapped())[:orders]
        ]
        margins = []
        for item, reply in zip(items, self.client.compare_many(items), strict=True):
            if isinstance(reply, ItemError):
                raise InvalidInput(f"the service refused a pair: {reply.type}: {reply.message}")
            self.meter.sequences += reply.usage.sequences
            self.meter.tokens += reply.usage.tokens
            self.meter.exact_flops += reply.usage.gflops * 1e9
            margins.append(reply.margin * served_temperature(self.card, item.get("domain"), orders=1))
        # The first choice's logit is the margin and the second's 0: only their difference matters.
        return [
            read_out([[margin, 0.0] for margin in margins[i : i + orders]], self.temperature)
            for i in range(0, len(margins), orders)
        ]

    def at(self, temperature: float) -> "ServiceScorer":
        return replace(self, temperature=temperature)


@dataclass(frozen=True, slots=True)
class ServedScores:
    """Score responses at /v1/score, those to one prompt in one call."""

    client: Client
    card: ModelCard
    meter: Meter

    def run(self, singles: Sequence[Single]) -> NDArray[np.float64]:
        """Return the logit of each response [n]. Raises CallFailed, also for a text that the service refuses."""
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, single in enumerate(singles):
            groups[single.instruction, single.prompt].append(place)
        calls = [
            places[i : i + MAX_RESPONSES] for places in groups.values() for i in range(0, len(places), MAX_RESPONSES)
        ]
        with ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="evaluation") as pool:
            replies = pool.map(lambda places: self._score([singles[place] for place in places]), calls)
            raw = np.empty(len(singles))
            for places, reply in zip(calls, replies, strict=True):
                raw[places] = [result.raw for result in reply.results]
                self.meter.sequences += reply.usage.sequences
                self.meter.tokens += reply.usage.tokens
                self.meter.exact_flops += reply.usage.gflops * 1e9
        return raw if self.card.activation == "identity" else logit(raw)

    def _score(self, group: Sequence[Single]) -> ScoreReply:
        instruction, prompt, _ = group[0]
        responses = [single.response or BLANK for single in group]
        return self.client.score(unrendered(prompt), responses, **selection(self.card, instruction))


@dataclass(frozen=True, slots=True)
class ServedSets:
    """Read each group at /v1/rank, in one call."""

    client: Client
    card: ModelCard
    meter: Meter

    def run(self, groups: Sequence[GroupTexts]) -> list[NDArray[np.float64]]:
        """Return the scores of each group's responses [n], with mean 0. Raises CallFailed."""
        with ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="evaluation") as pool:
            replies = list(pool.map(self._rank, groups))
        for reply in replies:
            self.meter.sequences += reply.usage.sequences
            self.meter.tokens += reply.usage.tokens
            self.meter.exact_flops += reply.usage.gflops * 1e9
        return [
            np.array(reply.strengths) * served_temperature(self.card, domain_of(self.card, instruction))
            for reply, (instruction, *_) in zip(replies, groups, strict=True)
        ]

    def _rank(self, group: GroupTexts) -> RankReply:
        instruction, prompt, responses = group
        return self.client.rank(
            unrendered(prompt), [text or BLANK for text in responses], **selection(self.card, instruction)
        )


def served_temperature(card: ModelCard, domain: str | None, orders: int = 2) -> float:
    """Return what divides the margins of calls; those that name no domain are in the default one."""
    name = domain or card.default_domain
    both = card.temperatures.get(name, card.temperature)
    if orders == 2 or card.temperature_one_order is None:
        return both
    # A domain with a temperature of its own has one for one order, too.
    return card.temperatures_one_order[name] if name in card.temperatures else card.temperature_one_order


def domain_of(card: ModelCard, instruction: str) -> str | None:
    """Return a domain that keeps of long responses what the instruction says; None if that is the default one."""
    kept = kept_under(instruction)
    if card.truncation.get(card.default_domain, "start") == kept:
        return None
    return next(domain for domain, own in card.truncation.items() if own == kept)


def selection(card: ModelCard, instruction: str) -> ScoreOptions:
    """Return the options of a call: the model, a domain that keeps the same of responses, the instruction if any.

    A model whose template has no place for an instruction has empty ones, and refuses any that is sent.
    """
    options: ScoreOptions = {"model": f"{card.name}@{card.revision}"}
    if any(card.domains.values()):
        options["instruction"] = instruction
    if domain := domain_of(card, instruction):
        options["domain"] = domain
    return options


def open_service(url: str, api_key: str | None = None) -> Target:
    """Open the default model of a running service. Raises CallFailed."""
    client = Client(url, api_key, timeout_s=600.0)
    card = next(card for card in client.models() if card.default)
    identity = f"{card.name}@{card.revision}"
    # The service does not publish its template; only instructions are used of this spec.
    spec = Spec(
        domains=card.domains,
        default_domain=card.default_domain,
        max_tokens=card.max_tokens,
        truncation=card.truncation or "start",
    )
    meter = Meter(paper_flops=None)
    scorer: AnyScorer
    if card.scores_alone:
        scorer = ResponseScorer(ServedScores(client, card, meter).run, card.temperature, card.reads)
    elif card.reads == "set":
        scorer = SetScorer(ServedSets(client, card, meter).run, card.temperature)
    else:
        scorer = ServiceScorer(client, card, card.temperature, meter)
    domains = {domain: Temperature(own) for domain, own in card.temperatures.items()}
    return Target(identity, f"{card.engine} at {url}", spec, scorer, meter, client.close, domains)
