"""What queue, engine and their callers exchange."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tinyrm.engines.base import EngineInfo


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """A running engine: the bundle that it opened, what it is, and what was measured when it first ran.

    identity: name@revision of the bundle.
    tokens_per_s: of one run.
    peak_gflops_per_s: the limit that useful work is measured against.
    """

    identity: str
    info: EngineInfo
    tokens_per_s: float
    peak_gflops_per_s: float

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Make one from what `dataclasses.asdict` returned."""
        return cls(**fields | {"info": EngineInfo(**fields["info"])})


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """Label logits [sequences, 2] of one run, and the seconds that the engine itself took."""

    logits: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineResult:
    """Label logits [sequences, 2] of one queue item, and how long it waited and ran."""

    logits: NDArray[np.float32]
    queue_s: float
    run_s: float

    def followed_by(self, other: "EngineResult") -> "EngineResult":
        """Return both as one: `other` was submitted when this one was known."""
        logits = np.concatenate([self.logits, other.logits])
        return EngineResult(logits, self.queue_s + other.queue_s, self.run_s + other.run_s)


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """How busy a queue and its engine are.

    wait_s: how long new work would wait.
    restarts: engines started since the first one.
    unhealthy_reason: why they cannot be relied on at the moment; None if they can.
    """

    queue_items: int
    queue_tokens: int
    wait_s: float
    restarts: int
    is_up: bool
    unhealthy_reason: str | None


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One engine run, for metrics.

    lengths: tokens of each sequence.
    padded_tokens: tokens computed, padding included.
    """

    lengths: list[int]
    padded_tokens: int
    run_s: float
    failed: bool = False

    @property
    def real_tokens(self) -> int:
        return sum(self.lengths)
