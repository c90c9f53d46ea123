"""The contract of an engine: `info` and `run`. Also what several engines share: a pool, and the count of processors."""

import math
import os
import queue
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding

R = TypeVar("R")

# On a CPU a larger batch saves nothing; its first sequences would only wait for its last.
BATCH_TOKENS_ON_CPU, BATCH_TOKENS_ON_GPU = 1024, 16_384
# The next batch is prepared while a GPU runs. On a CPU this would only fix the order of work earlier.
RUNS_IN_FLIGHT_ON_GPU = 2

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is, and which batches suit it. Callers use these fields and infer nothing else from them.

    name: runtime and device, such as `onnxruntime-cpu`.
    max_batch_tokens: tokens of one run that keep the device busy without making its first sequences wait.
    runs_in_flight: how many concurrent calls of `run` make the engine faster.
    pads: whether a batch is padded to its longest sequence, so that sequences of similar length belong together.
    length_multiple: without `pads`, each sequence is padded to a multiple of this many tokens.
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
    """Describe an engine on a CPU, with `streams` runs at once."""
    return EngineInfo(name, "cpu", precision, BATCH_TOKENS_ON_CPU, streams, pads, length_multiple)


def gpu_info(name: str, precision: str, *, pads: bool) -> EngineInfo:
    """Describe an engine on a GPU."""
    return EngineInfo(name, "gpu", precision, BATCH_TOKENS_ON_GPU, RUNS_IN_FLIGHT_ON_GPU, pads)


class Engine(Protocol):
    """Runs the model of one bundle.

    Safe for `info.runs_in_flight` concurrent calls; further calls wait. A caller must expect three failures: `run`
    raises EngineFailed, it returns logits that are not finite (`tinyrm.readout` refuses them), or it does not return,
    which only the caller's own clock can detect.
    """

    @property
    def info(self) -> EngineInfo: ...

    def run(self, sequences: Sequence[Encoding], /) -> NDArray[np.float32]:
        """Return logits [sequences, outputs], as the bundle's head has them. Raises EngineFailed.

        Of sets: [sequences, responses of the largest], with zeros behind the logits of a smaller set.
        """


class RunnerPool(Generic[R]):
    """A fixed set of runners, such as sessions: a caller takes a free one, or waits until one is returned."""

    def __init__(self, runners: Iterable[R]) -> None:
        self._free: queue.SimpleQueue[R] = queue.SimpleQueue()
        for runner in runners:
            self._free.put(runner)

    @contextmanager
    def take(self) -> Iterator[R]:
        runner = self._free.get()
        try:
            yield runner
        finally:
            self._free.put(runner)


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """Return how many processors this process may use, at least 1: those it may run on, within a container's quota.

    By default, runtimes count the machine's cores, and are slow inside a smaller quota.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota_cpus = math.inf
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroup v2, else v1
        try:
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            quota_cpus = int(quota) / int(period)
            break
    return max(1, math.ceil(min(cores, quota_cpus)))
