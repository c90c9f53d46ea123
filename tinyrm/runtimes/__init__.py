"""Engines behind one contract. Each runtime is a leaf of its own, imported only when it is asked for."""

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyrm.errors import EngineUnavailable

if TYPE_CHECKING:
    from tinyrm.bundle import Bundle


class Engine(Protocol):
    """Runs the graph of one bundle. Not expected to be safe for concurrent calls."""

    @property
    def name(self) -> str:
        """Runtime and device, such as `onnxruntime-cpu`."""

    @property
    def precision(self) -> str: ...

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Label logits [batch, 2] of right-padded ids [batch, tokens]. Raises EngineFailed."""


def open_engine(bundle: "Bundle", engine: str = "auto", *, precision: str = "fp32", threads: int = 0) -> Engine:
    """The engine asked for; `auto` takes the fastest one present.

    threads: per run, 0 lets the runtime choose. Raises EngineUnavailable: an engine that was asked for is never
    replaced by another.
    """
    from tinyrm.runtimes.ort import ENGINES, OnnxRuntimeEngine, available

    if engine == "auto":
        engine = available()[0]
    if engine not in ENGINES:
        raise EngineUnavailable(f"unknown engine {engine!r}; known: auto, {', '.join(ENGINES)}")
    return OnnxRuntimeEngine(bundle.model_file(precision), engine, precision, threads)


def warm_up(engine: Engine, tokens: int, pad_id: int) -> None:
    """Run small and full shapes once, so that the first request does not pay for memory planning."""
    for length in (min(64, tokens), tokens):
        ids = np.full((1, length), pad_id, dtype=np.int64)
        engine.run(ids, np.ones_like(ids))
