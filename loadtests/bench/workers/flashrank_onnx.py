"""flashrank's Ranker on the ONNX file of sentence-transformers: texts in, tokenizing included.

It knows models by name and looks for their files in a folder of its own, so it is given ours under such a name. Its
scores are probabilities; the logits are computed from them for the comparison.
"""

import json
import math
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from loadtests.bench.workers.protocol import Call, Prepare, Request, arguments, serve

NAME = "ms-marco-MiniLM-L-12-v2"
MAX_TOKENS = 1024


def load() -> tuple[Prepare, str]:
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    options = arguments(__doc__)
    store = Path(tempfile.mkdtemp())
    lay_out(options.model.resolve(), store / NAME, model_file_map[NAME])
    ranker = Ranker(NAME, cache_dir=str(store), max_length=MAX_TOKENS)

    def prepare(request: Request) -> Call:
        def call() -> list[list[float]]:
            # All in one batch, padded to the longest. It sorts and marks what it is given.
            passages = [{"id": number, "text": text} for number, text in enumerate(request["responses"])]
            ranked = ranker.rerank(RerankRequest(query=request["prompt"], passages=passages))
            scores = {passage["id"]: float(passage["score"]) for passage in ranked}
            return [[math.log(scores[n] / (1 - scores[n]))] for n in range(len(scores))]

        return call

    return prepare, f"flashrank {version('flashrank')}, onnxruntime {version('onnxruntime')}, its default threads"


def lay_out(model: Path, folder: Path, file: str) -> None:
    """Link the files under the names that the library looks for."""
    folder.mkdir()
    (folder / file).symlink_to(model / "onnx" / "model.onnx")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(model / name)
    tokens = model / "special_tokens_map.json"
    (folder / tokens.name).write_text(tokens.read_text() if tokens.is_file() else json.dumps({}))


if __name__ == "__main__":
    sys.exit(serve("flashrank", load))
