"""fastembed's TextCrossEncoder on the ONNX file of sentence-transformers: texts in, tokenizing included."""

import sys
from importlib.metadata import version

from loadtests.bench.workers.protocol import Call, Prepare, Request, arguments, serve

FILE = "onnx/model.onnx"


def load() -> tuple[Prepare, str]:
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    options = arguments(__doc__)
    TextCrossEncoder.add_custom_model("bench/cross-encoder", sources=ModelSource(hf="bench"), model_file=FILE)
    model = TextCrossEncoder(
        "bench/cross-encoder", threads=options.threads, specific_model_path=str(options.model), cuda=False
    )

    def prepare(request: Request) -> Call:
        def call() -> list[list[float]]:
            # Its default: batches of 64, each padded to its longest.
            return [[float(score)] for score in model.rerank(request["prompt"], request["responses"])]

        return call

    return prepare, f"fastembed {version('fastembed')}, onnxruntime {version('onnxruntime')}"


if __name__ == "__main__":
    sys.exit(serve("fastembed", load))
