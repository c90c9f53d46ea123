"""ONNX Runtime on CPU, CUDA or TensorRT."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tinyrm.engines.base import cpu_info, gpu_info
from tinyrm.engines.by_length import Run, run_by_length
from tinyrm.engines.cpus import usable_cpus
from tinyrm.engines.streams import Streams
from tinyrm.errors import EngineFailed, EngineUnavailable

PROVIDERS = {
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-cpu": "CPUExecutionProvider",
}
# Lengths a padded GPU batch is filled to. TensorRT has a profile for each, CUDA a kernel choice.
TOKEN_BUCKETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
MAX_ROWS = 64


def available() -> list[str]:
    """Engines that the installed build of ONNX Runtime offers, fastest first."""
    present = onnxruntime.get_available_providers()
    return [engine for engine, provider in PROVIDERS.items() if provider in present]


class OnnxRuntimeCpu:
    """Rows of one length at a time, on `streams` sessions of `threads` threads each."""

    def __init__(self, model_file: Path, precision: str, threads: int = 0, streams: int = 1) -> None:
        self.info = cpu_info("onnxruntime-cpu", precision, streams=streams)
        threads = threads or max(1, usable_cpus() // streams)
        self._sessions = Streams.of(lambda: open_session(model_file, threads=threads), streams)

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        with self._sessions.take() as run:
            return run_by_length(run, input_ids, attention_mask)


class OnnxRuntimeGpu:
    """Padded batches on CUDA or TensorRT, filled to a bucket so that few shapes are ever seen."""

    def __init__(self, model_file: Path, name: str, precision: str, cache: Path) -> None:
        self.info = gpu_info(name, precision, pads=True)
        self._run = open_session(model_file, name, provider_options=_gpu_options(name, cache))

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        tokens = input_ids.shape[1]
        bucket = next((b for b in TOKEN_BUCKETS if b >= tokens), tokens)
        filled = [np.pad(array, ((0, 0), (0, bucket - tokens))) for array in (input_ids, attention_mask)]
        chunks = range(0, len(input_ids), MAX_ROWS)
        return np.concatenate([self._run(*(array[i : i + MAX_ROWS] for array in filled)) for i in chunks])


def open_session(
    model_file: Path, name: str = "onnxruntime-cpu", *, threads: int = 0,
    provider_options: dict[str, str] | None = None,
) -> Run:  # fmt: skip
    """A session as a function of ids and mask. Raises EngineUnavailable; the function raises EngineFailed."""
    provider = PROVIDERS[name]
    if name not in available():
        raise EngineUnavailable(
            f"{name} needs {provider}, which this build of onnxruntime lacks; it has: {', '.join(available())}. "
            "For a GPU install the `gpu` extra instead of `serve`."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    # Shapes change with every batch: one plan for each would be kept forever.
    options.enable_mem_pattern = False
    # Threads that spin on after a run would take the processors from whoever waits for its answer.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(model_file), options, providers=[(provider, provider_options or {})])
    except Exception as error:  # the runtime's own exceptions share no base class below Exception
        raise EngineUnavailable(f"{name} could not open {model_file}: {error}") from error
    if provider not in session.get_providers():
        raise EngineUnavailable(
            f"{provider} could not be started and onnxruntime fell back; check driver and libraries"
        )
    return _runner(session, name)


def cache_folder(identity: str) -> Path:
    """Where engines built for one bundle are kept, under the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "tinyrm", identity)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _runner(session: Any, name: str) -> Run:
    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            (logits,) = session.run(["logits"], {"input_ids": input_ids, "attention_mask": attention_mask})
        except Exception as error:  # as above
            raise EngineFailed(f"{name}: {error}") from error
        result: NDArray[np.float32] = logits
        return result

    return run


def _gpu_options(name: str, cache: Path) -> dict[str, str]:
    """TensorRT: a profile for each bucket, engines and timings kept on disk. Precision is the graph's own."""
    if name != "onnxruntime-tensorrt":
        return {}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        **{
            f"trt_profile_{which}_shapes": ",".join(
                f"{name}:{rows}x{tokens}" for tokens in TOKEN_BUCKETS for name in ("input_ids", "attention_mask")
            )
            for which, rows in (("min", 1), ("opt", 8), ("max", MAX_ROWS))
        },
    }
