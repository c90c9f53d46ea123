"""Engines behind one contract. Each runtime is a leaf of its own, imported only when it is asked for."""

import logging
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyrm.errors import EngineUnavailable

if TYPE_CHECKING:
    from tinyrm.bundle import Bundle

log = logging.getLogger(__name__)


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
    """The engine asked for; `auto` takes the fastest one that starts here, and logs which it passed over.

    threads: per run, 0 lets the runtime choose. Raises EngineUnavailable: an engine that was asked for is never
    replaced by another.
    """
    from tinyrm.runtimes.ort import ENGINES, OnnxRuntimeEngine, available

    if engine not in ("auto", *ENGINES):
        raise EngineUnavailable(f"unknown engine {engine!r}; known: auto, {', '.join(ENGINES)}")
    candidates = available() if engine == "auto" else [engine]
    # A GPU build lists TensorRT and CUDA whether or not their libraries are there; only starting them tells.
    for candidate in candidates[:-1]:
        try:
            return OnnxRuntimeEngine(bundle.model_file(precision), candidate, precision, threads)
        except EngineUnavailable as error:
            log.warning("auto passes over %s: %s", candidate, error)
    return OnnxRuntimeEngine(bundle.model_file(precision), candidates[-1], precision, threads)


def warm_up(engine: Engine, tokens: int, pad_id: int) -> None:
    """Run small and full shapes once, so that the first request does not pay for memory planning."""
    for length in (min(64, tokens), tokens):
        ids = np.full((1, length), pad_id, dtype=np.int64)
        engine.run(ids, np.ones_like(ids))
