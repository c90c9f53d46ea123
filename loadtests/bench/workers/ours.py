"""TinyRM in this process: texts in, tokenizing included. Runs in .venv/dev."""

import itertools
import sys

from loadtests.bench.workers.protocol import Call, Prepare, Request, arguments, serve
from tinyrm.cascade import Cascade
from tinyrm.encoding import Encoding
from tinyrm.scorer import Scorer


def load() -> tuple[Prepare, str]:
    options = arguments(__doc__)
    scorer = Scorer.open(options.model, options.engine, precision=options.precision, threads=options.threads)
    cascade = None
    if options.pairwise:
        second = Scorer.open(options.pairwise, options.engine, precision=options.precision, threads=options.threads)
        cascade = Cascade(scorer, second)

    def prepare(request: Request) -> Call:
        prompt, responses = request["prompt"], request["responses"]
        sequences = encode(scorer, prompt, responses)

        def score() -> list[list[float]]:
            return [[float(score)] for score in scorer.score_responses(prompt, responses)]

        def rank() -> None:
            scorer.rank(prompt, responses)

        def run_engine() -> None:
            scorer.logits(sequences)

        def rank_by_both() -> None:
            assert cascade  # noqa: S101 - the call needs --pairwise
            cascade.rank(prompt, responses)

        calls: dict[str, Call] = {"score": score, "rank": rank, "engine": run_engine, "cascade": rank_by_both}
        return calls[options.call]

    return prepare, f"{scorer.engine.info.name}, {scorer.engine.info.precision}"


def encode(scorer: Scorer, prompt: str, responses: list[str]) -> list[Encoding]:
    """Return the sequences that rank the responses: all pairs in both orders, one of each response, or one of all."""
    encoder = scorer.encoder
    texts = encoder.tokenize(*scorer.spec.resolve(prompt, None, None), responses)
    if encoder.reads == "set":
        return list(encoder.assemble_sets(texts, range(len(responses))))
    if encoder.reads == "response":
        return [encoder.assemble_one(texts, i) for i in range(len(responses))]
    pairs = itertools.combinations(range(len(responses)), 2)
    return [sequence for a, b in pairs for sequence in encoder.assemble(texts, a, b, swap=True)]


if __name__ == "__main__":
    sys.exit(serve("ours", load))
