"""A group of 16 responses to one prompt: read in pairs by one model, and one by one by another of the same sizes.

Also one sample of a group, as a trainer sends it, against one call of `/v1/score`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from loadtests.bench.contenders import DEV, Contender, environment
from loadtests.bench.harness import Entry, Limits, measure
from loadtests.bench.texts import PROMPT_WORDS, Texts

RESPONSES, RESPONSE_TOKENS = 16, 200
SPECIAL_TOKENS = 3
# How a group is ranked: a title, the worker, and what it times.
RANKINGS = {
    "engine": ("the engine alone", "ours", "engine"),
    "library": ("`Scorer.rank`", "ours", "rank"),
    "http": ("`/v1/rank` over HTTP", "ours_http", "rank"),
}
SAMPLES = {
    "score": ("`/v1/score`, one response", "ours_http", "score"),
    "openrlhf": ("OpenRLHF's `/get_reward`, one sample", "ours_http", "openrlhf"),
}


def measure_groups(
    pairwise: Path,
    pointwise: Path,
    tokenizer: Path,
    threads: int,
    logs: Path,
    *,
    quick: bool,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Return the times of a ranking and of one sample, the former for both ways to read.

    pairwise, pointwise: bundles of the same sizes that read pairs, and one response.
    tokenizer: of both, with the special tokens of a pair.
    """

    def entry(name: str, title: str, bundle: Path, worker: str, call: str) -> Entry:
        options = ("--engine", "onnxruntime-cpu", "--call", call)
        contender = Contender(name, title, "fp32", DEV, "bundle", worker, options)
        command = contender.command(bundle, threads)
        return Entry(contender, command, logs / f"{name}.log", environment=environment(threads))

    def measured(entries: Sequence[Entry], responses: int, budget_s: float) -> list[dict[str, Any]]:
        length = PROMPT_WORDS + RESPONSE_TOKENS + SPECIAL_TOKENS
        label = f"{responses} x {RESPONSE_TOKENS}"
        request = texts.request(label, [length] * responses)
        measure(entries, {label: request}, Limits(budget_s=0.5 if quick else budget_s), log)
        return [one.record() for one in entries]

    texts = Texts(Tokenizer.from_file(str(tokenizer)))
    rankings = [
        entry(f"{reads}-{name}", f"{what}, {reads} by {reads}", bundle, worker, call)
        for name, (what, worker, call) in RANKINGS.items()
        for reads, bundle in (("pair", pairwise), ("response", pointwise))
    ]
    samples = [entry(name, what, pointwise, worker, call) for name, (what, worker, call) in SAMPLES.items()]
    return {"group": measured(rankings, RESPONSES, 6), "sample": measured(samples, 1, 4)}
