"""sentence-transformers' CrossEncoder with one of its backends: texts in, tokenizing included."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loadtests.bench.workers.protocol import Call, Prepare, Request, arguments, serve

# What computes, and what converts the model for it.
PACKAGES = {
    "torch": ("torch", "transformers"),
    "onnx": ("onnxruntime", "optimum-onnx", "transformers"),
    "openvino": ("openvino", "optimum-intel", "transformers"),
}


def load() -> tuple[Prepare, str]:
    import torch
    from sentence_transformers import CrossEncoder

    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    model = CrossEncoder(
        str(options.model),
        device="cpu",
        local_files_only=True,
        backend=options.backend,
        model_kwargs=backend_options(options.backend, options.threads),
    )
    identity = torch.nn.Identity()

    def prepare(request: Request) -> Call:
        pairs = [(request["prompt"], response) for response in request["responses"]]

        def call() -> list[list[float]]:
            # Its defaults: batches of 32, sorted by length, each padded to its longest.
            scores = model.predict(pairs, activation_fn=identity, show_progress_bar=False)
            return [[float(score)] for score in scores]

        return call

    return prepare, ", ".join(f"{name} {found(name)}" for name in ("sentence-transformers", *PACKAGES[options.backend]))


def backend_options(backend: str, threads: int) -> dict[str, Any]:
    """Return arguments of the backend's model: the number of threads, and fp32 where the backend would round."""
    if backend == "onnx":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        return {"provider": "CPUExecutionProvider", "session_options": settings}
    if backend == "openvino":
        return {"ov_config": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads)}}
    return {}


def found(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(unknown)"


def export(model: Path, backend: str, out: Path) -> None:
    """Write what the library converts the model to, which it would otherwise do at every start."""
    from sentence_transformers import CrossEncoder

    converted = CrossEncoder(str(model), device="cpu", local_files_only=True, backend=backend)
    converted.save_pretrained(str(out))


if __name__ == "__main__":
    chosen = arguments(__doc__)
    if chosen.export_to:
        export(chosen.model, chosen.backend, chosen.export_to)
        sys.exit()
    sys.exit(serve("cross-encoder", load))
