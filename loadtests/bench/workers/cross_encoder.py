"""sentence-transformers' CrossEncoder on a sequence classifier of the same geometry: text in, tokenizing included."""

import sys

from loadtests.bench.workers.protocol import Call, Prepare, Texts, arguments, serve


def load() -> tuple[Prepare, str]:
    import sentence_transformers
    import torch

    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    model = sentence_transformers.CrossEncoder(str(options.model), device="cpu", local_files_only=True)
    texts = Texts(model.tokenizer)

    def prepare(ids: list[list[int]], mask: list[list[int]]) -> Call:
        del ids  # other tokens of the same number: the time does not depend on which
        pairs = [texts.pair(sum(row)) for row in mask]

        def call() -> None:
            model.predict(pairs, batch_size=len(pairs), show_progress_bar=False)

        return call

    return prepare, f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(serve("cross-encoder", load))
