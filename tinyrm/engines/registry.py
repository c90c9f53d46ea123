"""The engines by name, and how each is opened.

onnxruntime-cpu        any CPU; fp32 and int8
openvino-cpu           any x86 or Arm CPU; fp32, int8, and bf16 where the CPU has it
onnxruntime-cuda       NVIDIA; the graph's own precision
onnxruntime-tensorrt   NVIDIA; the graph's own precision, engines built once and cached
torch-cuda             NVIDIA; packed tokens, bf16; needs torch and a bundle with weights
null                   no model; every comparison is a tie, to measure everything but the engine
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.base import Engine
from tinyrm.engines.null import NullEngine
from tinyrm.errors import EngineUnavailable, InvalidBundle

if TYPE_CHECKING:
    from tinyrm.bundle import Bundle
    from tinyrm.manifest import Manifest

log = logging.getLogger(__name__)

ENGINES = ("torch-cuda", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino-cpu", "onnxruntime-cpu", "null")
# They run shapes that are fixed beforehand.
WITHOUT_SETS = ("torch-cuda", "onnxruntime-tensorrt")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run a bundle."""

    engine: str = "auto"
    """Engine that runs the model; auto: the fastest that starts here."""
    precision: str = "fp32"
    """One of the bundle's precisions."""
    threads: int = 0
    """Threads of one run; 0 shares the usable processors among the streams."""
    streams: int = 1
    """Runs at the same time, on a CPU."""


def open_engine(bundle: "Bundle", options: EngineOptions = EngineOptions()) -> Engine:  # it is frozen
    """Open the named engine, or with `auto` the fastest that starts here; a warning names each one that does not.

    Raises EngineUnavailable, InvalidBundle: a named engine is never replaced by another.
    """
    if options.engine not in ("auto", *ENGINES):
        raise EngineUnavailable(f"unknown engine {options.engine!r}; known: auto, {', '.join(ENGINES)}")
    try:
        return _open_first(bundle, options)
    except ModuleNotFoundError as error:
        raise EngineUnavailable(
            f"an engine needs {error.name}: pip install 'tinyrm[local]', or 'tinyrm[gpu]' for a GPU"
        ) from error


def _open_first(bundle: "Bundle", options: EngineOptions) -> Engine:
    *others, last = [options.engine]
    if options.engine == "auto":
        from tinyrm.engines.onnx_runtime import available

        # TensorRT is not measured, so only its name selects it.
        others = ["torch-cuda", "onnxruntime-cuda"] if "onnxruntime-cuda" in available() else []
        last = "openvino-cpu" if options.precision == "bf16" else "onnxruntime-cpu"
    for name in others:
        try:
            return _open(bundle, replace(options, engine=name))
        except (EngineUnavailable, InvalidBundle) as error:
            log.warning("auto skips %s: %s", name, error)
    return _open(bundle, replace(options, engine=last))


def warm_up(engine: Engine, tokens: int, pad_id: int) -> None:
    """Run a short and the longest sequence once, so that the first request does not pay for memory planning."""
    for length in (min(64, tokens), tokens):
        engine.run([Encoding(np.full(length, pad_id, dtype=np.int64), Truncation())])


def _open(bundle: "Bundle", options: EngineOptions) -> Engine:
    """Open one engine by its name. What it needs is imported here, since most programs use a single engine."""
    manifest, precision = bundle.manifest, options.precision
    _refuse_unread(manifest, options.engine)
    match options.engine:
        case "onnxruntime-cpu":
            from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu

            if precision == "bf16":
                raise EngineUnavailable(
                    "ONNX Runtime has no bf16 arithmetic on CPUs; use openvino-cpu, or fp32 or int8"
                )
            file = bundle.model_file(precision, options.engine)
            return OnnxRuntimeCpu(file, precision, options.threads, options.streams, bundle.files)
        case "onnxruntime-cuda" | "onnxruntime-tensorrt":
            from tinyrm.engines.onnx_runtime import OnnxRuntimeGpu, cache_folder

            file, cache = bundle.model_file(precision), cache_folder(manifest.identity)
            pad_id = manifest.special_tokens.pad
            return OnnxRuntimeGpu(file, options.engine, precision, pad_id=pad_id, cache=cache, files=bundle.files)
        case "openvino-cpu":
            try:
                from tinyrm.engines.openvino_cpu import OpenVinoCpu
            except ImportError as error:
                raise EngineUnavailable(
                    "openvino-cpu needs the `openvino` extra: pip install 'tinyrm[openvino]'"
                ) from error
            # OpenVINO computes in bf16 from the fp32 file; there is no bf16 file.
            file = bundle.model_file("fp32" if precision == "bf16" else precision)
            with copied(bundle.files, file) as path:
                return OpenVinoCpu(path, precision, options.threads, options.streams)
        case "torch-cuda":
            try:
                from tinyrm.engines.torch_gpu import open_torch_cuda
            except ImportError as error:
                raise EngineUnavailable(f"torch-cuda needs torch and transformers: {error}") from error
            return open_torch_cuda(bundle.path(bundle.weights_file().name), manifest, precision)
        case _:
            of_sets = manifest.special_tokens.mask if manifest.reads == "set" else None
            return NullEngine(precision, manifest.head.outputs, mask_id=of_sets)


def _refuse_unread(manifest: "Manifest", engine: str) -> None:
    """Raise EngineUnavailable if the bundle reads sets, or holds rounded weights, and the engine does not read them."""
    if manifest.reads == "set" and engine in WITHOUT_SETS:
        raise EngineUnavailable(
            f"{engine} does not read sets, whose sizes only their ids tell; use onnxruntime-cpu or onnxruntime-cuda"
        )
    if manifest.stored and engine == "onnxruntime-tensorrt":  # it has a meaning of its own for integers in a graph
        raise EngineUnavailable(
            f"{engine} does not read weights stored in {manifest.stored.dtype}; use onnxruntime-cuda, or export the "
            "bundle without --stored"
        )


@contextmanager
def copied(files: Mapping[str, Path], file: Path) -> Iterator[Path]:
    """Return a path under which a library opens `file`, and beside it the data that it refers to.

    files: private copies by name. Their paths have other names, so they are copied to a temporary folder.
    """
    if file.name not in files:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="tinyrm-") as folder:
        for name in files:
            if name.startswith(file.name) or name.endswith(".data"):
                shutil.copyfile(files[name], Path(folder) / name)
        yield Path(folder) / file.name
