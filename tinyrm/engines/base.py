"""What every engine is: a description of itself, and `run`."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

# Rows of a CPU engine share nothing, so a larger batch only makes its first rows wait for its last.
BATCH_TOKENS_ON_CPU, BATCH_TOKENS_ON_GPU = 1024, 16_384
# A GPU finds its next batch prepared. A CPU would only commit itself earlier to what it does next.
RUNS_IN_FLIGHT_ON_GPU = 2


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and what suits it. An engine states this; nothing else may be inferred from it.

    name: runtime and device, such as `onnxruntime-cpu`.
    max_batch_tokens: tokens of one run that keep the device busy without making its first rows wait.
    runs_in_flight: concurrent calls of `run` that make it faster.
    pads: a batch is filled to its longest sequence, so that sequences of similar length belong together.
    length_multiple: otherwise, each sequence is filled to a multiple of this many tokens.
    """

    name: str
    device: Literal["cpu", "gpu"]
    precision: str
    max_batch_tokens: int
    runs_in_flight: int
    pads: bool
    length_multiple: int = 1


def cpu_info(
    name: str, precision: str, *, streams: int = 1, pads: bool = False, length_multiple: int = 1
) -> EngineInfo:
    """An engine on a CPU, with `streams` runs at once."""
    return EngineInfo(name, "cpu", precision, BATCH_TOKENS_ON_CPU, streams, pads, length_multiple)


def gpu_info(name: str, precision: str, *, pads: bool) -> EngineInfo:
    """An engine on a GPU."""
    return EngineInfo(name, "gpu", precision, BATCH_TOKENS_ON_GPU, RUNS_IN_FLIGHT_ON_GPU, pads)


class Engine(Protocol):
    """Runs the graph of one bundle.

    Safe for `info.runs_in_flight` concurrent calls; more wait. A caller has to reckon with three failures: `run`
    raises EngineFailed, `run` returns logits that are not finite (`tinyrm.readout` refuses them), or `run` does not
    return, which only the caller's own clock can tell.
    """

    @property
    def info(self) -> EngineInfo: ...

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Label logits [batch, 2] of right-padded ids [batch, tokens]. Raises EngineFailed."""
