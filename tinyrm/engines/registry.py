"""Which engines there are, and how each is opened.

onnxruntime-cpu        any CPU; fp32 and int8
openvino-cpu           any x86 or Arm CPU; fp32, int8, and bf16 where the CPU has it
onnxruntime-cuda       NVIDIA; the graph's own precision
onnxruntime-tensorrt   NVIDIA; the graph's own precision, engines built once and cached
torch-cuda             NVIDIA; packed tokens, bf16; needs torch and a bundle with weights
null                   none; every comparison is a tie, to measure what is around an engine
"""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.base import Engine
from tinyrm.errors import EngineUnavailable, InvalidBundle

if TYPE_CHECKING:
    from tinyrm.bundle import Bundle

log = logging.getLogger(__name__)

ENGINES = ("torch-cuda", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino-cpu", "onnxruntime-cpu", "null")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run a bundle."""

    engine: str = "auto"
    """One of ENGINES, or auto: the fastest that starts here."""
    precision: str = "fp32"
    threads: int = 0
    """Threads of one run; 0 shares the usable processors among the streams."""
    streams: int = 1
    """Runs at once, on a CPU."""


def open_engine(bundle: "Bundle", options: EngineOptions = EngineOptions()) -> Engine:  # it is frozen
    """Open the engine asked for; `auto` takes the fastest that starts here, and logs which ones it skipped.

    Raises EngineUnavailable, InvalidBundle: an engine that was asked for is never replaced by another.
    """
    if options.engine not in ("auto", *ENGINES):
        raise EngineUnavailable(f"unknown engine {options.engine!r}; known: auto, {', '.join(ENGINES)}")
    *candidates, last = _candidates(options.precision) if options.engine == "auto" else [options.engine]
    for name in candidates:
        try:
            return _open(bundle, replace(options, engine=name))
        except (EngineUnavailable, InvalidBundle) as error:
            log.warning("auto skips %s: %s", name, error)
    return _open(bundle, replace(options, engine=last))


def warm_up(engine: Engine, tokens: int, pad_id: int) -> None:
    """Run a short and the longest sequence once, so that the first request does not pay for memory planning."""
    for length in (min(64, tokens), tokens):
        engine.run([Encoding(np.full(length, pad_id, dtype=np.int64), Truncation())])


def _candidates(precision: str) -> list[str]:
    """Return what `auto` tries, fastest first; the last must start. TensorRT is not measured: ask for it by name."""
    from tinyrm.engines.onnx_runtime import available

    gpu = [name for name in ("torch-cuda", "onnxruntime-cuda") if "onnxruntime-cuda" in available()]
    return [*gpu, "openvino-cpu" if precision == "bf16" else "onnxruntime-cpu"]


def _open(bundle: "Bundle", options: EngineOptions) -> Engine:
    openers = {
        "onnxruntime-cpu": _onnxruntime_cpu,
        "onnxruntime-cuda": _onnxruntime_gpu,
        "onnxruntime-tensorrt": _onnxruntime_gpu,
        "openvino-cpu": _openvino_cpu,
        "torch-cuda": _torch_cuda,
        "null": _null,
    }
    engine = openers[options.engine](bundle, options)
    log.info("engine %s, precision %s", engine.info.name, engine.info.precision)
    return engine


def _onnxruntime_cpu(bundle: "Bundle", options: EngineOptions) -> Engine:
    from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu

    if options.precision == "bf16":
        raise EngineUnavailable("ONNX Runtime has no bf16 arithmetic on CPUs; use openvino-cpu, or fp32 or int8")
    file = bundle.model_file(options.precision, options.engine)
    return OnnxRuntimeCpu(file, options.precision, options.threads, options.streams)


def _onnxruntime_gpu(bundle: "Bundle", options: EngineOptions) -> Engine:
    from tinyrm.engines.onnx_runtime import OnnxRuntimeGpu, cache_folder

    manifest = bundle.manifest
    return OnnxRuntimeGpu(
        bundle.model_file(options.precision),
        options.engine,
        options.precision,
        pad_id=manifest.special_tokens.pad,
        cache=cache_folder(manifest.identity),
    )


def _openvino_cpu(bundle: "Bundle", options: EngineOptions) -> Engine:
    try:
        from tinyrm.engines.openvino_cpu import OpenVinoCpu
    except ImportError as error:
        raise EngineUnavailable("openvino-cpu needs the `openvino` extra: pip install 'tinyrm[openvino]'") from error
    # bf16 is how this runtime computes the fp32 file, not a file of its own.
    file = bundle.model_file("fp32" if options.precision == "bf16" else options.precision)
    return OpenVinoCpu(file, options.precision, options.threads, options.streams)


def _torch_cuda(bundle: "Bundle", options: EngineOptions) -> Engine:
    try:
        from tinyrm.engines.torch_gpu import open_torch_cuda
    except ImportError as error:
        raise EngineUnavailable(f"torch-cuda needs torch and transformers: {error}") from error
    return open_torch_cuda(bundle.weights_file(), bundle.manifest, options.precision)


def _null(_: "Bundle", options: EngineOptions) -> Engine:
    from tinyrm.engines.null import NullEngine

    return NullEngine(options.precision)
