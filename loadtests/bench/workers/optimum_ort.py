"""The stock export of optimum-onnx (task fill-mask) on ONNX Runtime: logits of the whole vocabulary at every token."""

import sys
from importlib.metadata import version
from pathlib import Path

from loadtests.bench.workers.protocol import Call, Prepare, Request, arguments, mask_positions, serve


def export(model: Path, out: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(str(model), out, task="fill-mask", device="cpu", dtype="fp32", local_files_only=True)


def load() -> tuple[Prepare, str]:
    import numpy as np
    import onnxruntime as ort

    options = arguments(__doc__)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    session = ort.InferenceSession(options.model / "model.onnx", settings, providers=["CPUExecutionProvider"])

    def prepare(request: Request) -> Call:
        ids = request["input_ids"]
        inputs = {name: np.array(request[name], np.int64) for name in ("input_ids", "attention_mask")}
        rows, positions = np.arange(len(ids)), np.array(mask_positions(ids, options.mask))

        def call() -> list[list[float]]:
            (logits,) = session.run(["logits"], inputs)
            found: list[list[float]] = logits[rows, positions][:, list(options.labels)].tolist()
            return found

        return call

    return prepare, f"optimum-onnx {version('optimum-onnx')}, onnxruntime {ort.__version__}"


if __name__ == "__main__":
    chosen = arguments(__doc__)
    if chosen.export_to:
        export(chosen.model, chosen.export_to)
        sys.exit()
    sys.exit(serve("optimum", load))
