"""The values that queue, engine and their callers exchange."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding
from tinyrm.engines.base import EngineInfo

# Why a queue or a pipeline that drains is not healthy.
NO_NEW_WORK = "the service accepts no new work"


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """A running engine: its bundle, its properties, and what was measured when it first ran.

    identity: name@revision of the bundle.
    tokens_per_s: rate of one run.
    peak_gflops_per_s: the peak that MFU is relative to.
    """

    identity: str
    info: EngineInfo
    tokens_per_s: float
    peak_gflops_per_s: float

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Make a profile from the dictionary of `dataclasses.asdict`."""
        return cls(**fields | {"info": EngineInfo(**fields["info"])})


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """Logits [sequences, outputs] of one run, and the seconds that it took in the engine.

    Rows of sets are as wide as the largest of them, with zeros behind the logits of smaller ones.

    ran: the sequences that were computed, each once; None: all of the batch.
    """

    logits: NDArray[np.float32]
    seconds: float
    ran: Sequence[Encoding] | None = None


@dataclass(frozen=True, slots=True)
class EngineResult:
    """Logits [sequences, outputs] of one queue item, and the seconds that it waited and ran."""

    logits: NDArray[np.float32]
    queue_s: float
    run_s: float

    def followed_by(self, other: "EngineResult") -> "EngineResult":
        """Return this result and a later one as one result."""
        logits = np.concatenate([self.logits, other.logits])
        return EngineResult(logits, self.queue_s + other.queue_s, self.run_s + other.run_s)


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """How busy a queue and its engine are.

    wait_s: estimated seconds until all the work that waits has run.
    restarts: engines started since the first one.
    unhealthy_reason: why they are not healthy; None if they are.
    next_wait_s: estimated wait of new work of a client that has nothing in the queue.
    is_full: whether the queue has room for nobody's work.
    """

    queue_items: int
    queue_tokens: int
    wait_s: float
    restarts: int
    is_up: bool
    unhealthy_reason: str | None
    next_wait_s: float = 0.0
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Figures of one engine run, for metrics.

    sequences: those that were computed.
    padded_tokens: tokens computed, padding included.
    """

    sequences: Sequence[Encoding]
    padded_tokens: int
    run_s: float
    failed: bool = False

    @property
    def real_tokens(self) -> int:
        return sum(map(len, self.sequences))
