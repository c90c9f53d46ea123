"""The part `ranking`: what n responses to one prompt cost each way to rank them, with `tinyrm.scorer` and its engines.

Models of the small geometry with random weights: one reads pairs, one responses, one sets; the cascade orders by the
one that reads responses and compares the best four in pairs. Texts in, ranking out, tokenizing included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from loadtests.bench import cross_encoders
from loadtests.bench.contenders import DEV, Contender, environment
from loadtests.bench.effort import Effort, Save
from loadtests.bench.harness import Entry, measure
from loadtests.bench.output import ROOT, print_line
from loadtests.bench.prepare import MODEL_SOURCES, Step, make_all, make_model, prepare
from loadtests.bench.shapes import GEOMETRIES, TOKENS
from loadtests.bench.texts import Texts
from loadtests.report import Target
from tinyrm.comparison import CASCADE_TOP

PROMPT_TOKENS, RESPONSE_TOKENS, SPECIAL_TOKENS = 100, 100, 3
# By name: a title, the bundle, what is timed, and the sequences of n responses.
WAYS = {
    "round-robin": ("all pairs, both orders (round robin)", "pair", "rank"),
    "cascade": ("responses, then the best four in pairs (cascade)", "response", "cascade"),
    "response": ("each response alone (pointwise)", "response", "rank"),
    "set": ("all responses at once (set-wise)", "set", "rank"),
}
SAMPLES = {
    "score": ("`/v1/score`, one response", "score"),
    "openrlhf": ("OpenRLHF's `/get_reward`, one sample", "openrlhf"),
}


def run(effort: Effort, save: Save) -> dict[str, Any]:
    """Measure every way at every number of responses, then one sample as a trainer sends it."""
    bundles, reasons = made()
    if reasons:
        raise RuntimeError("; ".join(reasons))
    texts = Texts(Tokenizer.from_file(str(bundles["response"] / "tokenizer.json")))
    length = PROMPT_TOKENS + RESPONSE_TOKENS + SPECIAL_TOKENS
    requests = {
        str(n): texts.request(f"{n} responses", [length] * n, PROMPT_TOKENS) for n in sorted({1, *effort.responses})
    }
    sample = {"1": requests.pop("1")}
    ways = [entry(name, bundles, effort.threads) for name in WAYS]
    measure(ways, requests, effort.limits, print_line)
    results: dict[str, Any] = {
        "prompt_tokens": PROMPT_TOKENS,
        "response_tokens": RESPONSE_TOKENS,
        "sequences": {name: {n: sequences(name, int(n)) for n in requests} for name in WAYS},
        "contenders": [way.record() for way in ways],
    }
    save(results)
    samples = [served(name, bundles["response"], effort.threads) for name in SAMPLES]
    measure(samples, sample, replace(effort.limits, budget_s=effort.limits.budget_s / 2), print_line)
    results["samples"] = [one.record() for one in samples]
    results["targets"] = targets(results)
    # A ranking has no logits to compare; what it is made of is compared in the other parts.
    return {**results, "parity": [f"{one.contender.name}: {one.reason}" for one in ways if one.reason]}


def sequences(way: str, n: int) -> int:
    """Return how many sequences a ranking of n responses reads."""
    pairs = min(n, CASCADE_TOP) * (min(n, CASCADE_TOP) - 1)
    return {"round-robin": n * (n - 1), "cascade": n + pairs, "response": n, "set": 1}[way]


def prepare_all() -> list[str]:
    return made()[1]


def made() -> tuple[dict[str, Path], list[str]]:
    """Make a bundle for each way to read. Return them, and why some could not be made."""
    of_pairs = prepare("small", ROOT, wanted={"bundle"}, max_tokens=max(TOKENS["small"]), log=print_line)
    of_responses = make_all(cross_encoders.steps("modernbert"), ROOT, {"bundle"}, print_line)
    of_sets = make_all(set_steps(), ROOT, {"bundle"}, print_line)
    found = {"pair": of_pairs, "response": of_responses, "set": of_sets}
    reasons = [f"{name} {what}: {reason}" for name, one in found.items() for what, reason in one.reasons.items()]
    return {name: one.paths["bundle"] for name, one in found.items()}, reasons


def set_steps() -> Sequence[Step]:
    """Return what is made for the model that reads sets."""
    model, bundle = ROOT / "models" / "small-set", ROOT / "bundles" / "small-set"
    export = [str(DEV), "-m", "export", "--model", str(model), "--out", str(bundle)]
    made = make_model("modernbert-set", GEOMETRIES["small"], model)
    return [made, Step("bundle", bundle, export, (*MODEL_SOURCES, "export", "tinyrm"))]


def entry(name: str, bundles: Mapping[str, Path], threads: int) -> Entry:
    title, reads, call = WAYS[name]
    options = ["--engine", "onnxruntime-cpu", "--call", call]
    if call == "cascade":
        options += ["--pairwise", str(bundles["pair"])]
    contender = Contender(name, title, "fp32", DEV, "bundle", "ours", tuple(options))
    command = contender.command(bundles[reads], threads)
    return Entry(contender, command, ROOT / "logs" / "ranking" / f"{name}.log", environment=environment(threads))


def served(name: str, bundle: Path, threads: int) -> Entry:
    title, call = SAMPLES[name]
    options = ("--engine", "onnxruntime-cpu", "--call", call)
    contender = Contender(name, title, "fp32", DEV, "bundle", "ours_http", options)
    command = contender.command(bundle, threads)
    return Entry(contender, command, ROOT / "logs" / "ranking" / f"{name}.log", environment=environment(threads))


def targets(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what single responses save at 16, and what a trainer's sample costs beside a score."""
    cells = {row["name"]: row["cells"] for row in (*results["contenders"], *results["samples"])}
    found = [
        Target(
            "16 responses, time of all pairs over that of single responses",
            over(cells["round-robin"].get("16"), cells["response"].get("16")),
            12,
            "at least",
            "x",
        ),
        Target(
            "OpenRLHF's sample over `/v1/score`",
            over(cells["openrlhf"].get("1"), cells["score"].get("1")),
            1.1,
            "at most",
            "x",
        ),
    ]
    return [target.record() for target in found if target.value is not None]


def over(cell: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> float | None:
    """Return the ratio of two medians; None if one was not measured."""
    medians = [one["median_s"] for one in (cell, other) if one and "median_s" in one]
    return medians[0] / medians[1] if len(medians) == 2 else None
