"""ONNX Runtime on a CPU, with CUDA or with TensorRT."""

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tinyrm.batching import RunRectangle, collate, concatenate, run_by_length
from tinyrm.encoding import Encoding
from tinyrm.engines.base import RunnerPool, cpu_info, gpu_info, usable_cpus
from tinyrm.errors import EngineFailed, EngineUnavailable

PROVIDERS = {
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-cpu": "CPUExecutionProvider",
}
# Lengths that a GPU batch is padded to. TensorRT has a profile for each; CUDA chooses kernels for each.
TOKEN_BUCKETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
MAX_ROWS = 64

# A fused operator that is slower on a CPU than what it replaces: it takes four times as long as sum and norm.
SLOW_ON_CPU = ("SkipLayerNormFusion",)

Files = Mapping[str, Path]
NO_FILES: Files = MappingProxyType({})


def available() -> list[str]:
    """Return the engines that the installed build of ONNX Runtime offers, fastest first."""
    present = onnxruntime.get_available_providers()
    return [engine for engine, provider in PROVIDERS.items() if provider in present]


class OnnxRuntimeCpu:
    """Runs sequences of one length at a time, `streams` runs at once, with `threads` threads for each.

    All runs share one session, so that its weights are in memory once, and its threads: a run that is alone uses those
    of the others. Who computes a product does not change its result.
    """

    def __init__(
        self, model_file: Path, precision: str, threads: int = 0, streams: int = 1, files: Files = NO_FILES
    ) -> None:
        self.info = cpu_info("onnxruntime-cpu", precision, streams=streams)
        threads = threads or max(1, usable_cpus() // streams)
        # The thread that calls `run` is one of the run's own; the others are the session's.
        session = open_session(model_file, threads=(threads - 1) * streams + 1, files=files)
        self._runs = RunnerPool([session] * streams)

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        with self._runs.take() as run:
            return run_by_length(run, sequences)


class OnnxRuntimeGpu:
    """Runs batches on CUDA or TensorRT, padded to a bucket so that few shapes occur."""

    def __init__(
        self, model_file: Path, name: str, precision: str, *, pad_id: int, cache: Path, files: Files = NO_FILES
    ) -> None:
        self.info = gpu_info(name, precision, pads=True)
        self._pad_id = pad_id
        options = {}
        if name == "onnxruntime-tensorrt":  # a profile for each bucket; engines and timings are kept on disk
            options = {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(cache),
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(cache),
            }
            tensors = ("input_ids", "attention_mask")
            for which, rows in (("min", 1), ("opt", 8), ("max", MAX_ROWS)):
                options[f"trt_profile_{which}_shapes"] = ",".join(
                    f"{tensor}:{rows}x{tokens}" for tokens in TOKEN_BUCKETS for tensor in tensors
                )
        self._run = open_session(model_file, name, provider_options=options, files=files)

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        tokens = max(len(sequence) for sequence in sequences)
        bucket = next((b for b in TOKEN_BUCKETS if b >= tokens), tokens)
        chunks = [sequences[i : i + MAX_ROWS] for i in range(0, len(sequences), MAX_ROWS)]
        return concatenate([self._run(*collate(chunk, self._pad_id, length=bucket)) for chunk in chunks])


def open_session(
    model_file: Path,
    name: str = "onnxruntime-cpu",
    *,
    threads: int = 0,
    provider_options: dict[str, str] | None = None,
    files: Files = NO_FILES,
) -> RunRectangle:
    """Return a session as a function of ids and mask, which raises EngineFailed. Raises EngineUnavailable.

    files: paths of private copies, by name. If the model has one, it is read from there, and so is what it refers to.
    """
    provider = PROVIDERS[name]
    if name not in available():
        raise EngineUnavailable(
            f"{name} needs {provider}, which this build of onnxruntime lacks; it has: {', '.join(available())}. "
            "For a GPU install the `gpu` extra instead of `serve`."
        )
    onnxruntime.disable_telemetry_events()  # for a program that imported it before tinyrm.telemetry could prevent them
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    # Shapes change with every batch: a memory plan for each would be kept for ever.
    options.enable_mem_pattern = False
    # Threads that spin after a run would take the processors from the process that handles its result.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        model: str | bytes = str(model_file)
        if model_file.name in files:
            model = files[model_file.name].read_bytes()
            names = [name for name, path in files.items() if name != model_file.name and path.stat().st_size]
            contents = [memory_map(files[name]) for name in names]
            options.add_external_initializers_from_files_in_memory(names, contents, list(map(len, contents)))
        session = onnxruntime.InferenceSession(
            model,
            options,
            providers=[(provider, provider_options or {})],
            disabled_optimizers=list(SLOW_ON_CPU) if name == "onnxruntime-cpu" else None,
        )
    except Exception as error:  # the runtime's own exceptions share no base class below Exception
        raise EngineUnavailable(f"{name} could not open {model_file}: {error}") from error
    if provider not in session.get_providers():
        raise EngineUnavailable(
            f"{provider} could not be started and onnxruntime fell back; check the driver and the libraries"
        )

    def run(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            (logits,) = session.run(["logits"], {"input_ids": input_ids, "attention_mask": attention_mask})
        except Exception as error:  # as above
            raise EngineFailed(f"{name}: {error}") from error
        result: NDArray[np.float32] = logits
        return result

    return run


def memory_map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def cache_folder(identity: str) -> Path:
    """Return the folder of engines built for one bundle, under the user's cache; create it if it is missing."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "tinyrm", identity)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
