"""One interface to a bundle, a checkpoint or a running service, with a meter of its cost."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tinyrm.comparison import Comparison, Preference
from tinyrm.encoding import Encoding
from tinyrm.engines import Engine, EngineInfo
from tinyrm.flops import Geometry, exact_flops, paper_flops
from tinyrm.spec import Spec

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


@dataclass(slots=True)
class Meter:
    """Costs so far, over all sequences.

    paper_flops: None if the geometry is not known.
    """

    pairs: int = 0
    tokens: int = 0
    exact_flops: float = 0.0
    paper_flops: float | None = 0.0
    seconds: float = 0.0

    def reset(self) -> None:
        """Set all counts back to 0."""
        self.pairs, self.tokens, self.exact_flops, self.seconds = 0, 0, 0.0, 0.0
        self.paper_flops = None if self.paper_flops is None else 0.0


class Cost(BaseModel):
    """Per decided pair, which is two sequences. GFLOPs of matrix products (tinyrm/flops.py); paper: by its formula."""

    model_config = ConfigDict(frozen=True)

    pairs: int
    tokens_per_pair: float
    gflops_per_pair: float
    paper_gflops_per_pair: float | None
    pairs_per_second: float

    @classmethod
    def of(cls, meter: Meter) -> Self:
        pairs = max(meter.pairs, 1)
        return cls(
            pairs=meter.pairs,
            tokens_per_pair=meter.tokens / pairs,
            gflops_per_pair=meter.exact_flops / pairs / 1e9,
            paper_gflops_per_pair=None if meter.paper_flops is None else meter.paper_flops / pairs / 1e9,
            pairs_per_second=meter.pairs / meter.seconds if meter.seconds else 0.0,
        )


@dataclass(frozen=True, slots=True)
class MeteredEngine:
    """An engine that counts the tokens and operations of every sequence, without padding."""

    engine: Engine
    geometry: Geometry
    parameters: int
    meter: Meter

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        for tokens in map(len, sequences):
            self.meter.tokens += tokens
            self.meter.exact_flops += exact_flops(self.geometry, tokens)
            spent = paper_flops(self.parameters, self.geometry, tokens)
            self.meter.paper_flops = (self.meter.paper_flops or 0.0) + spent
        return self.engine.run(sequences)


@dataclass(frozen=True, slots=True)
class Target:
    """A model to evaluate.

    identity: name and revision, for reports.
    engine: its name.
    spec: instructions by domain.
    close: to call at the end.
    """

    identity: str
    engine: str
    spec: Spec
    scorer: PairScorer
    meter: Meter = field(default_factory=Meter)
    close: Callable[[], None] = lambda: None

    def score(
        self, comparisons: Sequence[Comparison], instructions: Sequence[str], *, swap: bool = True
    ) -> list[Preference]:
        """Return a preference for each comparison, and add to the meter.

        Parts bound the memory, and the log shows progress after each.
        """
        preferences: list[Preference] = []
        for start in range(0, len(comparisons), PART):
            part = slice(start, start + PART)
            started = time.perf_counter()
            preferences += self.scorer.score(comparisons[part], instructions[part], swap=swap)
            self.meter.seconds += time.perf_counter() - started
            log.info("%d of %d pairs", len(preferences), len(comparisons))
        self.meter.pairs += len(comparisons)
        return preferences

    def at(self, temperature: float) -> "Target":
        """Return the same target at another temperature."""
        return replace(self, scorer=self.scorer.at(temperature))
