"""OpenVINO on a CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from tinyrm.batching import run_by_length
from tinyrm.encoding import Encoding
from tinyrm.engines.base import RunnerPool, cpu_info, usable_cpus
from tinyrm.errors import EngineFailed, EngineUnavailable

# Kernels are compiled for each shape: lengths are padded to a multiple, and the kernels of this many shapes are kept.
LENGTH_MULTIPLE = 16
KERNEL_CACHE = 2048
PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoCpu:
    """Runs sequences of one padded length at a time, in `streams` requests of `threads` threads each."""

    def __init__(self, model_file: Path, precision: str, threads: int = 0, streams: int = 1) -> None:
        self.info = cpu_info("openvino-cpu", precision, streams=streams, length_multiple=LENGTH_MULTIPLE)
        threads = threads or max(1, usable_cpus() // streams)
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineUnavailable("this CPU has no bf16 arithmetic; use fp32 or int8")
        options = {
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision],
            "INFERENCE_NUM_THREADS": threads * streams,
            "NUM_STREAMS": streams,
            "CPU_RUNTIME_CACHE_CAPACITY": KERNEL_CACHE,
            # By default it rounds the activations, too, that meet weights stored in 8 bits.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        try:
            compiled = core.compile_model(str(model_file), "CPU", options)
        except Exception as error:  # OpenVINO raises RuntimeError and pybind's own kinds
            raise EngineUnavailable(f"openvino-cpu could not open {model_file}: {error}") from error
        self._requests: RunnerPool[Any] = RunnerPool(compiled.create_infer_request() for _ in range(streams))

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        with self._requests.take() as request:

            def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
                try:
                    logits = request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True)["logits"]
                except Exception as error:  # as above
                    raise EngineFailed(f"{self.info.name}: {error}") from error
                return np.array(logits, dtype=np.float32)

            return run_by_length(run, sequences, length_multiple=LENGTH_MULTIPLE)
