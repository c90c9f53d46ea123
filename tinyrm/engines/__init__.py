"""Engines behind one contract. Each runtime is a leaf of its own, imported only when it is asked for.

onnxruntime-cpu        any CPU; fp32 and int8
openvino-cpu           any x86 or Arm CPU; fp32, int8, and bf16 where the CPU has it
onnxruntime-cuda       NVIDIA; the graph's own precision
onnxruntime-tensorrt   NVIDIA; the graph's own precision, engines built once and cached
torch-cuda             NVIDIA; packed tokens, bf16; needs torch and a bundle with weights
null                   none; every comparison is a tie, to measure what is around an engine
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tinyrm.engines.base import Engine, EngineInfo
from tinyrm.errors import EngineUnavailable, InvalidBundle

if TYPE_CHECKING:
    from tinyrm.bundle import Bundle

__all__ = ["ENGINES", "Engine", "EngineInfo", "open_engine", "warm_up"]

log = logging.getLogger(__name__)

ENGINES = ("torch-cuda", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino-cpu", "onnxruntime-cpu", "null")


def open_engine(
    bundle: "Bundle", engine: str = "auto", *, precision: str = "fp32", threads: int = 0, streams: int = 1
) -> Engine:
    """The engine asked for; `auto` takes the fastest one that starts here, and logs which it passed over.

    threads: per run, 0 shares the usable processors among the streams. streams: runs at once, on a CPU.
    Raises EngineUnavailable: an engine that was asked for is never replaced by another.
    """
    if engine not in ("auto", *ENGINES):
        raise EngineUnavailable(f"unknown engine {engine!r}; known: auto, {', '.join(ENGINES)}")

    def start(name: str) -> Engine:
        return _STARTERS[name](bundle, name, precision, threads, streams)

    candidates = _candidates(precision) if engine == "auto" else [engine]
    for candidate in candidates[:-1]:
        try:
            return _chosen(start(candidate))
        except (EngineUnavailable, InvalidBundle) as error:
            log.warning("auto passes over %s: %s", candidate, error)
    return _chosen(start(candidates[-1]))


def warm_up(engine: Engine, tokens: int, pad_id: int) -> None:
    """Run small and full shapes once, so that the first request does not pay for memory planning."""
    for length in (min(64, tokens), tokens):
        ids = np.full((1, length), pad_id, dtype=np.int64)
        engine.run(ids, np.ones_like(ids))


def _candidates(precision: str) -> list[str]:
    """What `auto` tries, fastest first; the last one has to start. TensorRT is not measured: ask for it by name."""
    from tinyrm.engines.onnx_runtime import available

    gpu = [name for name in ("torch-cuda", "onnxruntime-cuda") if "onnxruntime-cuda" in available()]
    return [*gpu, "openvino-cpu" if precision == "bf16" else "onnxruntime-cpu"]


def _chosen(engine: Engine) -> Engine:
    log.info("engine %s, precision %s", engine.info.name, engine.info.precision)
    return engine


def _onnxruntime_cpu(bundle: "Bundle", name: str, precision: str, threads: int, streams: int) -> Engine:
    from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu

    if precision == "bf16":
        raise EngineUnavailable("ONNX Runtime has no bf16 arithmetic on CPUs; use openvino-cpu, or fp32 or int8")
    return OnnxRuntimeCpu(bundle.model_file(precision, name), precision, threads, streams)


def _onnxruntime_gpu(bundle: "Bundle", name: str, precision: str, _threads: int, _streams: int) -> Engine:
    from tinyrm.engines.onnx_runtime import OnnxRuntimeGpu, cache_folder

    return OnnxRuntimeGpu(bundle.model_file(precision), name, precision, cache_folder(bundle.manifest.identity))


def _openvino_cpu(bundle: "Bundle", _: str, precision: str, threads: int, streams: int) -> Engine:
    try:
        from tinyrm.engines.openvino_cpu import OpenVinoCpu
    except ImportError as error:
        raise EngineUnavailable("openvino-cpu needs the `openvino` extra: pip install 'tinyrm[openvino]'") from error
    # bf16 is how this runtime computes the fp32 file, not a file of its own.
    file = bundle.model_file("fp32" if precision == "bf16" else precision)
    return OpenVinoCpu(file, precision, threads, streams)


def _torch_cuda(bundle: "Bundle", _: str, precision: str, _threads: int, _streams: int) -> Engine:
    try:
        from tinyrm.engines.torch_gpu import open_torch_cuda
    except ImportError as error:
        raise EngineUnavailable(f"torch-cuda needs torch and transformers: {error}") from error
    return open_torch_cuda(bundle.weights_file(), bundle.manifest, precision)


def _null(_bundle: "Bundle", _: str, precision: str, _threads: int, _streams: int) -> Engine:
    from tinyrm.engines.null import NullEngine

    return NullEngine(precision)


_STARTERS: dict[str, Callable[["Bundle", str, str, int, int], Engine]] = {
    "onnxruntime-cpu": _onnxruntime_cpu,
    "onnxruntime-cuda": _onnxruntime_gpu,
    "onnxruntime-tensorrt": _onnxruntime_gpu,
    "openvino-cpu": _openvino_cpu,
    "torch-cuda": _torch_cuda,
    "null": _null,
}
