"""python -m loadtests.bench.cross_encoders: one cross-encoder in other libraries and servers, and in TinyRM.

Texts in, scores out, tokenizing included: what a user of each library calls.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Tokenizer

from loadtests import machine
from loadtests.bench import groups, score_tables
from loadtests.bench.contenders import (
    DEV,
    INFINITY,
    OPTIMUM,
    OPTIMUM_INTEL,
    PEERS,
    Contender,
    environment,
    missing,
)
from loadtests.bench.harness import Entry, Limits, discard_wrong, measure
from loadtests.bench.output import ROOT, print_line, write
from loadtests.bench.prepare import MODEL_SOURCES, Prepared, Step, make_all, make_model, prepare
from loadtests.bench.shapes import GEOMETRIES
from loadtests.bench.texts import LONGEST, MIXED, Texts, mixed_lengths
from tinyrm.command_line import parse
from tinyrm.flops import Geometry

TOKENS = (64, 128, 256, 512, 1024)
TOLERANCE = 1e-3  # between implementations, of logits that differ by 0.1 from text to text
REFERENCE = "sentence-torch"

ModelName = Literal["minilm", "modernbert"]

# all-MiniLM-L6 and ms-marco-MiniLM-L6 have these sizes.
MINILM = Geometry(
    layers=6,
    hidden=384,
    intermediate=1536,
    heads=12,
    window=LONGEST,
    global_layers=tuple(range(6)),
    vocab=30522,
    gated=False,
)
# By name: the kind of make_models, and the sizes.
MODELS: Mapping[ModelName, tuple[str, Geometry]] = {
    "minilm": ("bert-cross-encoder", MINILM),
    "modernbert": ("modernbert-cross-encoder", GEOMETRIES["small"]),
}

OURS, OVER_HTTP = ("--engine", "onnxruntime-cpu"), "over HTTP"
_ALL = (
    Contender("ours-ort", "TinyRM, ONNX Runtime", "fp32", DEV, "bundle", "ours", OURS),
    Contender("ours-openvino", "TinyRM, OpenVINO", "fp32", DEV, "bundle", "ours", ("--engine", "openvino-cpu")),
    Contender(REFERENCE, "sentence-transformers, torch", "fp32", PEERS, "model", "cross_encoder"),
    Contender(
        "sentence-onnx",
        "sentence-transformers, ONNX",
        "fp32",
        OPTIMUM,
        "sentence-onnx",
        "cross_encoder",
        ("--backend", "onnx"),
    ),
    Contender(
        "sentence-openvino",
        "sentence-transformers, OpenVINO",
        "fp32",
        OPTIMUM_INTEL,
        "sentence-openvino",
        "cross_encoder",
        ("--backend", "openvino"),
    ),
    Contender("ours-http", "TinyRM over HTTP, `/v1/score`", "fp32", DEV, "bundle", "ours_http", OURS),
    Contender("infinity", "infinity_emb over HTTP, `/rerank`", "fp32", INFINITY, "model", "infinity_http"),
)
CONTENDERS = {contender.name: contender for contender in _ALL}


@dataclass(frozen=True)
class Options:
    """Time the same cross-encoder in other libraries and servers, and in TinyRM, side by side."""

    model: tuple[ModelName, ...] = get_args(ModelName)
    """Cross-encoders to measure: MiniLM-L6's sizes on BERT, and a small ModernBERT."""
    tokens: tuple[int, ...] = TOKENS
    """Lengths of a single sequence, at most 1,024."""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    """Names of those to measure."""
    threads: int = field(default_factory=machine.usable_cores)
    """Threads of each contender; by default the cores of this machine."""
    budget_s: float = 2
    """Seconds for each contender and length; a batch of mixed lengths has at least three samples."""
    groups: bool = True
    """Also measure a group of 16 responses, read in pairs and one by one."""
    quick: bool = False
    """64 and 256 tokens, a budget of at most half a second, no batch of mixed lengths."""
    no_write: bool = False
    """Print the tables, and leave the document as it is; numbers and plot go to runs/bench/cross-encoders.*."""
    document: Path = Path("docs/performance.md")
    """Markdown file to write the section into; numbers and plot go to results/ and images/ beside it."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m loadtests.bench.cross_encoders")
    results: dict[str, Any] = {
        "machine": machine.describe(machine.read_cpuinfo()),
        "threads": options.threads,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "geometries": {},
    }
    document = None if options.no_write else options.document

    def save() -> None:
        """Write what was measured so far: an interrupted run has results too."""
        write(results, "cross-encoders", score_tables.HEADING, score_tables.section(results), document)

    for name in options.model:
        print(f"cross-encoder {name}", flush=True)
        results["geometries"][name] = measure_model(name, options)
        save()
    if options.groups:
        print("groups", flush=True)
        results["groups"] = measure_groups(options)
        save()
    wrong = score_tables.wrong(results)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def measure_model(name: ModelName, options: Options) -> dict[str, Any]:
    """Make what is compared, then run the contenders in turns."""
    chosen = [contender for contender in CONTENDERS.values() if contender.name in options.contenders]
    wanted = {contender.artifact for contender in chosen if contender.python.exists()}
    prepared = make_all(steps(name), ROOT, wanted, print_line)
    tokens = tuple(length for length in options.tokens if length <= 256) if options.quick else options.tokens
    lengths = {str(length): [length] for length in sorted(tokens)}
    if not options.quick:
        lengths[MIXED] = mixed_lengths()
    entries = [
        entry(contender, prepared, options.threads, ROOT / "logs" / f"cross-encoder-{name}") for contender in chosen
    ]
    if "model" not in prepared.reasons:
        texts = Texts(Tokenizer.from_file(str(prepared.paths["model"] / "tokenizer.json")))
        requests = {label: texts.request(label, counts) for label, counts in lengths.items()}
        budget_s = min(options.budget_s, 0.5) if options.quick else options.budget_s
        measure(entries, requests, Limits(budget_s=budget_s), print_line, reference=REFERENCE)
        discard_wrong(entries, TOLERANCE)
    return {
        "shapes": [{"label": label, "lengths": counts} for label, counts in lengths.items()],
        "contenders": [one.record() for one in entries],
    }


def measure_groups(options: Options) -> dict[str, Any]:
    """Make two small models that read pairs, and one response, then measure both. A reason if one cannot be made."""
    pairwise = prepare("small", ROOT, wanted={"bundle"}, max_tokens=LONGEST, log=print_line)
    pointwise = make_all(steps("modernbert"), ROOT, {"bundle"}, print_line)
    for reason in (*pairwise.reasons.values(), *pointwise.reasons.values()):
        print(f"no groups: {reason}", file=sys.stderr)
        return {"reason": reason}
    bundles = (pairwise.paths["bundle"], pointwise.paths["bundle"])
    tokenizer, logs = pointwise.paths["model"] / "tokenizer.json", ROOT / "logs" / "groups"
    return groups.measure_groups(*bundles, tokenizer, options.threads, logs, quick=options.quick, log=print_line)


def steps(name: ModelName) -> Sequence[Step]:
    """Return what is made for one cross-encoder: the model, our bundle, and the exports of the other library."""
    kind, geometry = MODELS[name]
    model, bundle = ROOT / "cross-encoders" / name, ROOT / "bundles" / f"{name}-cross-encoder"
    export = [str(DEV), "-m", "export", "--model", str(model), "--max-tokens", str(LONGEST), "--out", str(bundle)]
    made = [make_model(kind, geometry, model), Step("bundle", bundle, export, (*MODEL_SOURCES, "export", "tinyrm"))]
    for backend, python in (("onnx", OPTIMUM), ("openvino", OPTIMUM_INTEL)):
        out = ROOT / "cross-encoders" / f"{name}-{backend}"
        worker = "loadtests.bench.workers.cross_encoder"
        command = [str(python), "-m", worker, "--model", str(model), "--backend", backend, "--export-to", str(out)]
        made.append(
            Step(f"sentence-{backend}", out, command, (*MODEL_SOURCES, "loadtests/bench/workers/cross_encoder.py"))
        )
    return made


def entry(contender: Contender, prepared: Prepared, threads: int, logs: Path) -> Entry:
    command = contender.command(prepared.paths[contender.artifact], threads)
    reason = missing(contender, prepared.reasons)
    # A library's default, which matters for a batch.
    variables = environment(threads) | {"TOKENIZERS_PARALLELISM": "true"}
    return Entry(contender, command, logs / f"{contender.name}.log", reason, variables)


if __name__ == "__main__":
    sys.exit(main())
