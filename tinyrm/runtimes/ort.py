"""ONNX Runtime on CPU, CUDA or TensorRT."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tinyrm.errors import EngineFailed, EngineUnavailable

# Fastest first; the order `auto` tries.
ENGINES = {
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-cpu": "CPUExecutionProvider",
}


def available() -> list[str]:
    """Engines that the installed build of ONNX Runtime offers, fastest first."""
    present = onnxruntime.get_available_providers()
    return [engine for engine, provider in ENGINES.items() if provider in present]


class OnnxRuntimeEngine:
    """One session on one provider. Raises EngineUnavailable if the provider cannot be used here."""

    def __init__(self, model_file: Path, name: str, precision: str, threads: int = 0) -> None:
        self.name = name
        self.precision = precision
        self._session = _open_session(model_file, name, threads)

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            (logits,) = self._session.run(["logits"], {"input_ids": input_ids, "attention_mask": attention_mask})
        except Exception as error:  # the runtime's own exceptions share no base class below Exception
            raise EngineFailed(f"{self.name}: {error}") from error
        result: NDArray[np.float32] = logits
        return result


def _open_session(model_file: Path, name: str, threads: int) -> Any:
    provider = ENGINES[name]
    if name not in available():
        raise EngineUnavailable(
            f"{name} needs {provider}, which this build of onnxruntime lacks; it has: {', '.join(available())}. "
            "For a GPU install the `gpu` extra instead of `serve`."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Shapes change with every batch: one plan for each would be kept forever.
    options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(str(model_file), options, providers=[provider])
    except Exception as error:  # the runtime's own exceptions share no base class below Exception
        raise EngineUnavailable(f"{name} could not open {model_file}: {error}") from error
    if provider not in session.get_providers():
        raise EngineUnavailable(
            f"{provider} could not be started and onnxruntime fell back; check driver and libraries"
        )
    return session
