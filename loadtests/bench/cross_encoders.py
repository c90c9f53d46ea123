"""The part `cross-encoders`: one cross-encoder in other libraries and servers, and in TinyRM.

Texts in, scores out, tokenizing included: what a user of each library calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from loadtests.bench import score_tables
from loadtests.bench.contenders import (
    DEV,
    FASTEMBED,
    FLASHRANK,
    INFINITY,
    OPTIMUM,
    OPTIMUM_INTEL,
    PEERS,
    Contender,
    environment,
    missing,
)
from loadtests.bench.effort import Effort, Save
from loadtests.bench.harness import Entry, discard_wrong, measure
from loadtests.bench.output import ROOT, print_line
from loadtests.bench.prepare import MODEL_SOURCES, Prepared, Step, make_all, make_model
from loadtests.bench.shapes import GEOMETRIES
from loadtests.bench.texts import LONGEST, MIXED, Texts, mixed_lengths
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
    # Both read the ONNX file that sentence-transformers has written.
    Contender("fastembed", "fastembed, ONNX", "fp32", FASTEMBED, "sentence-onnx", "fastembed_onnx"),
    Contender("flashrank", "flashrank, ONNX", "fp32", FLASHRANK, "sentence-onnx", "flashrank_onnx"),
    Contender("ours-http", "TinyRM over HTTP, `/v1/score`", "fp32", DEV, "bundle", "ours_http", OURS),
    Contender("infinity", "infinity_emb over HTTP, `/rerank`", "fp32", INFINITY, "model", "infinity_http"),
)
CONTENDERS = {contender.name: contender for contender in _ALL}


def run(effort: Effort, save: Save) -> dict[str, Any]:
    """Measure each cross-encoder. "parity": where scores of ours are not those of the reference."""
    results: dict[str, Any] = {"geometries": {}}
    for name in chosen(effort):
        print_line(f"cross-encoder {name}")
        results["geometries"][name] = measure_model(name, effort)
        save(results)
    return {**results, "parity": score_tables.wrong(results)}


def prepare_all(effort: Effort) -> list[str]:
    """Make what is compared. Return why some could not be made."""
    return [
        f"{name} {artifact}: {reason}"
        for name in chosen(effort)
        for artifact, reason in make_all(steps(name), ROOT, wanted(), print_line).reasons.items()
    ]


def chosen(effort: Effort) -> list[ModelName]:
    return [name for name in MODELS if name in effort.models]


def wanted() -> set[str]:
    return {contender.artifact for contender in CONTENDERS.values() if contender.python.exists()}


def measure_model(name: ModelName, effort: Effort) -> dict[str, Any]:
    """Make what is compared, then run the contenders in turns."""
    prepared = make_all(steps(name), ROOT, wanted(), print_line)
    lengths = {str(length): [length] for length in sorted(effort.tokens or TOKENS) if length <= LONGEST}
    if effort.name != "quick":
        lengths[MIXED] = mixed_lengths()
    logs = ROOT / "logs" / f"cross-encoder-{name}"
    entries = [entry(contender, prepared, effort.threads, logs) for contender in CONTENDERS.values()]
    if "model" not in prepared.reasons:
        texts = Texts(Tokenizer.from_file(str(prepared.paths["model"] / "tokenizer.json")))
        requests = {label: texts.request(label, counts) for label, counts in lengths.items()}
        # A third of the budget: lengths are fewer operations here, and contenders more.
        limits = replace(effort.limits, budget_s=effort.limits.budget_s / 3)
        measure(entries, requests, limits, print_line, reference=REFERENCE)
        discard_wrong(entries, TOLERANCE)
    return {
        "shapes": [{"label": label, "lengths": counts} for label, counts in lengths.items()],
        "contenders": [one.record() for one in entries],
    }


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
