"""One interface to a bundle, a checkpoint or a running service, with a meter of its cost."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tinyrm.comparison import Comparison, Preference
from tinyrm.confidence import Temperature
from tinyrm.encoding import Encoding
from tinyrm.engines import Engine, EngineInfo
from tinyrm.flops import Geometry, paper_flops
from tinyrm.readout import read_out
from tinyrm.schedules import Pair
from tinyrm.scorer import Scorer
from tinyrm.spec import Spec
from tinyrm.template import Reads

log = logging.getLogger(__name__)

# Enough that sequences of one length meet in a batch.
PART = 1024


class PairScorer(Protocol):
    """A scorer of comparisons: `tinyrm.scorer.Scorer`, or a service behind its client."""

    @property
    def temperature(self) -> float: ...

    def score(
        self, comparisons: Sequence[Comparison], instructions: Sequence[str], *, swap: bool = True
    ) -> list[Preference]: ...

    def at(self, temperature: float) -> "PairScorer":
        """Return the same scorer at another temperature."""


# Instruction, prompt and responses.
GroupTexts = tuple[str, str, Sequence[str]]


class Single(NamedTuple):
    """One response, as a model that scores responses alone sees it."""

    instruction: str
    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class ResponseScorer:
    """A scorer of single responses. Preferences are differences of its scores.

    run: returns raw scores [n], in order.
    temperature: divides differences.
    reads: what a sequence holds: one response, or all those of a prompt.
    """

    run: Callable[[Sequence[Single]], NDArray[np.floating]]
    temperature: float = 1.0
    reads: Reads = "response"

    def at(self, temperature: float) -> Self:
        """Return the same scorer at another temperature."""
        return replace(self, temperature=temperature)


@dataclass(frozen=True, slots=True)
class SetScorer:
    """A scorer of responses that are read beside each other. Preferences are differences of scores in one set.

    run: returns the raw scores [responses] of each group, in order.
    temperature: divides differences.
    """

    run: Callable[[Sequence[GroupTexts]], Sequence[NDArray[np.float64]]]
    temperature: float = 1.0

    def at(self, temperature: float) -> Self:
        """Return the same scorer at another temperature."""
        return replace(self, temperature=temperature)


AnyScorer = PairScorer | ResponseScorer | SetScorer


def local_scorer(scorer: Scorer) -> AnyScorer:
    """Return the scorer of a model in this process, as the model reads."""
    if scorer.encoder.scores_alone:
        return ResponseScorer(scorer.score_texts, scorer.temperature, scorer.encoder.reads)
    return SetScorer(scorer.score_groups, scorer.temperature) if scorer.encoder.reads == "set" else scorer


@dataclass(slots=True)
class Meter:
    """Costs so far, over all sequences.

    pairs: decided ones.
    paper_flops: None if the geometry is not known.
    """

    pairs: int = 0
    sequences: int = 0
    tokens: int = 0
    exact_flops: float = 0.0
    paper_flops: float | None = 0.0
    seconds: float = 0.0

    def reset(self) -> None:
        """Set all counts back to 0."""
        self.pairs, self.sequences, self.tokens, self.exact_flops, self.seconds = 0, 0, 0, 0.0, 0.0
        self.paper_flops = None if self.paper_flops is None else 0.0


class Cost(BaseModel):
    """What all sequences cost, divided by the pairs that they decided. GFLOPs of matrix products (tinyrm/flops.py).

    A model that reads pairs runs two sequences for each, one for each order. One that reads responses runs one for each
    distinct response, in however many pairs it occurs: two for a pair alone, four for the six pairs of four responses.
    One that reads sets runs one for a pair, or for a group of responses.

    paper_gflops_per_pair: by the paper's formula.
    """

    model_config = ConfigDict(frozen=True)

    reads: Reads
    pairs: int
    sequences: int
    tokens_per_pair: float
    gflops_per_pair: float
    paper_gflops_per_pair: float | None
    pairs_per_second: float

    @property
    def text_tokens(self) -> float:
        """Return the tokens of the text of a pair, read once: a sequence holds both of its responses, or one."""
        sequences_per_text = 2 if self.reads == "response" else 1
        return sequences_per_text * self.tokens_per_pair * self.pairs / max(self.sequences, 1)


@dataclass(frozen=True, slots=True)
class MeteredEngine:
    """An engine that counts the tokens and operations of every sequence, without padding."""

    engine: Engine
    geometry: Geometry
    parameters: int
    count_flops: Callable[[Encoding], int]
    meter: Meter

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        self.meter.sequences += len(sequences)
        for sequence in sequences:
            self.meter.tokens += len(sequence)
            self.meter.exact_flops += self.count_flops(sequence)
            spent = paper_flops(self.parameters, self.geometry, len(sequence))
            self.meter.paper_flops = (self.meter.paper_flops or 0.0) + spent
        return self.engine.run(sequences)


@dataclass(frozen=True, slots=True)
class Target:
    """A model to evaluate.

    identity: name and revision, for reports.
    engine: its name.
    spec: instructions by domain.
    close: to call at the end.
    domains: temperatures of those domains that have their own.
    """

    identity: str
    engine: str
    spec: Spec
    scorer: AnyScorer
    meter: Meter = field(default_factory=Meter)
    close: Callable[[], None] = lambda: None
    domains: Mapping[str, Temperature] = field(default_factory=dict)

    @property
    def reads(self) -> Reads:
        """Return what one sequence holds."""
        if isinstance(self.scorer, ResponseScorer):
            return self.scorer.reads
        return "set" if isinstance(self.scorer, SetScorer) else "pair"

    @property
    def cost(self) -> Cost:
        """Return what was spent since the meter was reset."""
        meter, pairs = self.meter, max(self.meter.pairs, 1)
        return Cost(
            reads=self.reads,
            pairs=meter.pairs,
            sequences=meter.sequences,
            tokens_per_pair=meter.tokens / pairs,
            gflops_per_pair=meter.exact_flops / pairs / 1e9,
            paper_gflops_per_pair=None if meter.paper_flops is None else meter.paper_flops / pairs / 1e9,
            pairs_per_second=meter.pairs / meter.seconds if meter.seconds else 0.0,
        )

    def score(self, comparisons: Sequence[Comparison], instructions: Sequence[str]) -> list[Preference]:
        """Return a preference for each comparison, and add to the meter.

        Pairs are scored in both orders. Where responses are scored alone, each distinct one is scored once.
        """
        if isinstance(self.scorer, SetScorer):
            groups = [
                (instruction, comparison.prompt, (comparison.response_a, comparison.response_b))
                for comparison, instruction in zip(comparisons, instructions, strict=True)
            ]
            return [preferences[0, 1] for preferences in self._score_sets(self.scorer, groups)]
        if isinstance(self.scorer, ResponseScorer):
            singles = [
                Single(instruction, comparison.prompt, response)
                for comparison, instruction in zip(comparisons, instructions, strict=True)
                for response in (comparison.response_a, comparison.response_b)
            ]
            scores: list[list[list[float]]] = self._score_distinct(self.scorer, singles).reshape(-1, 2, 1).tolist()
            preferences = [read_out(rows, self.scorer.temperature) for rows in scores]
        else:
            preferences = self._score_pairs(self.scorer, comparisons, instructions)
        self.meter.pairs += len(comparisons)
        return preferences

    def score_groups(self, groups: Sequence[GroupTexts]) -> list[dict[Pair, Preference]]:
        """Return the preference of each pair (i, j), i < j, of each group's responses, and add to the meter.

        A model that reads sets reads each group at once; any other scores the pairs as `score` does.
        """
        if isinstance(self.scorer, SetScorer):
            return self._score_sets(self.scorer, groups)
        pairs = [
            (instruction, Comparison(prompt, responses[i], responses[j]))
            for instruction, prompt, responses in groups
            for i, j in combinations(range(len(responses)), 2)
        ]
        scored = iter(self.score([comparison for _, comparison in pairs], [instruction for instruction, _ in pairs]))
        return [{pair: next(scored) for pair in combinations(range(len(responses)), 2)} for _, _, responses in groups]

    def at(self, temperature: float) -> "Target":
        """Return the same target at another temperature, for all domains."""
        return replace(self, scorer=self.scorer.at(temperature), domains={})

    def temperature_of(self, domain: str | None) -> Temperature:
        """Return the temperature of pairs with this domain; those of an unknown one are read as of the default."""
        name = self.spec.find_domain(domain, or_default=True)
        return self.domains.get(name, Temperature(self.scorer.temperature))

    def _score_pairs(
        self, scorer: PairScorer, comparisons: Sequence[Comparison], instructions: Sequence[str]
    ) -> list[Preference]:
        preferences: list[Preference] = []
        for part in self._parts(len(comparisons), "pairs"):
            preferences += scorer.score(comparisons[part], instructions[part])
        return preferences

    def _score_sets(self, scorer: SetScorer, groups: Sequence[GroupTexts]) -> list[dict[Pair, Preference]]:
        found: list[dict[Pair, Preference]] = []
        for part in self._parts(len(groups), "groups"):
            for scores in scorer.run(groups[part]):
                pairs = combinations(range(len(scores)), 2)
                found.append({(i, j): read_out([[scores[i]], [scores[j]]], scorer.temperature) for i, j in pairs})
                self.meter.pairs += len(found[-1])
        return found

    def _score_distinct(self, scorer: ResponseScorer, singles: Sequence[Single]) -> NDArray[np.float64]:
        """Return the raw score of each [n]; equal ones are scored once."""
        distinct = list(dict.fromkeys(singles))
        found: dict[Single, float] = {}
        for part in self._parts(len(distinct), "responses"):
            found |= zip(distinct[part], scorer.run(distinct[part]).tolist(), strict=True)
        return np.array([found[single] for single in singles])

    def _parts(self, count: int, name: str) -> Iterator[slice]:
        """Yield parts, which bound the memory; add the time that the caller takes for each, and log the progress."""
        for start in range(0, count, PART):
            started = time.perf_counter()
            yield slice(start, start + PART)
            self.meter.seconds += time.perf_counter() - started
            log.info("scored %d of %d %s", min(start + PART, count), count, name)
