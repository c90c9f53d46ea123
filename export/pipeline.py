"""From a checkpoint and its adapter to a bundle, if every check passes."""

import logging
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn
from transformers import ModernBertForMaskedLM, PreTrainedModel

from export.calibration import fit_auto_swap, score_pairs
from export.config import ExportOptions
from export.cpu_graph import ENGINE, branch_on_padding, on_cpu
from export.graph import write_onnx
from export.parity import LENGTHS, check, probes, run_alone, run_together, torch_run
from export.precision import lower_precision
from tinyrm.bundle import refuse_foreign, write_bundle
from tinyrm.calibration import fit_temperature, is_bounded, raw_margins
from tinyrm.encoding import Encoder
from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu, open_session
from tinyrm.errors import InvalidInput
from tinyrm.manifest import TOKENIZER_FILE, AutoSwap, Gate, Manifest, Parity, Provenance
from tinyrm.modernbert.adapter import load_with_adapter, merge, plain
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.modernbert.checkpoint import LabelLogits, load_tokenizer, read_geometry
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.modernbert.weights import save_weights
from tinyrm.pairs import read_pairs
from tinyrm.scorer import Scorer

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.safetensors"

log = logging.getLogger(__name__)


def export_bundle(options: ExportOptions) -> Manifest:
    """Merge, compile, check, calibrate, write.

    Raises ParityFailed, PrecisionRefused, InvalidInput, InvalidTemplate, InvalidBundle; then nothing is written.
    """
    refuse_foreign(options.out)
    options.refuse_heads()
    options.refuse_other_base()
    tokenizer, special = load_tokenizer(options.tokenizer)
    spec = options.spec()
    encoder = Encoder(tokenizer, spec.template, special, spec.max_tokens)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder)
        onnx_file = written / MODEL_FILE
        masked_lm, graph, parity = compile_checked(options, encoder, onnx_file)
        temperature, auto_swap = _calibrate(options, encoder, onnx_file)
        lower = _lower_precisions(options, encoder, graph, onnx_file, temperature)
        tokenizer.save(str(written / TOKENIZER_FILE))
        if options.weights:
            _save_weights(graph, masked_lm, written / WEIGHTS_FILE)
        precisions = {precision: graph_file(precision) for precision in ("fp32", *lower)}
        own = {precision: on_cpu(written / name).name for precision, name in precisions.items()}
        return write_bundle(
            options.out,
            {path.name: path for path in sorted(written.iterdir())},
            {
                "name": options.out.name,
                "spec": spec,
                "special_tokens": special,
                "label_ids": encoder.label_ids,
                "geometry": read_geometry(masked_lm.config),
                "parameters": masked_lm.num_parameters(),
                "graph": "optimised" if isinstance(graph, BlockedModel) else "plain",
                "precisions": precisions,
                "specialised": {ENGINE: {p: name for p, name in own.items() if name != precisions[p]}},
                "gates": lower,
                "weights": WEIGHTS_FILE if options.weights else None,
                "temperature": temperature,
                "auto_swap": auto_swap,
                "provenance": _provenance(options),
                "parity": parity,
                "evaluation": _held_out(options),
            },
            options.card,
        )


def compile_checked(
    options: ExportOptions, encoder: Encoder, onnx_file: Path
) -> tuple[PreTrainedModel, nn.Module, tuple[Parity, ...]]:
    """Write the merged model's graph to `onnx_file`. Return the merged model, the graph, and every passed check."""
    special = encoder.special

    def label_logits(masked_lm: PreTrainedModel) -> LabelLogits:
        return LabelLogits(masked_lm, special.mask, encoder.label_ids).eval()

    model = load_with_adapter(options.model, options.adapter)
    inputs = probes(special, plain(model).config.vocab_size, encoder.max_tokens)
    adapted = run_alone(torch_run(label_logits(plain(model))), inputs, special.pad)
    merged = merge(model)
    reference = run_alone(torch_run(label_logits(merged)), inputs, special.pad)
    log.info("compiling the graph")
    graph = _graph(options, merged, encoder)
    write_onnx(graph, onnx_file, _longest(merged, encoder))
    if isinstance(graph, BlockedModel):
        branch_on_padding(onnx_file)
    run = open_session(on_cpu(onnx_file))
    alone = run_alone(run, inputs, special.pad)
    # Without the longest: a dozen rows of 8,192 tokens would not fit into memory.
    mixed = [sequence for sequence in inputs if len(sequence) <= LENGTHS[-1]]
    return (
        merged,
        graph,
        (
            check("adapter unmerged, merged", adapted, reference),
            check("torch, onnx", reference, alone),
            check("alone, in a batch", alone[: len(mixed)], run_together(run, mixed, special.pad)),
        ),
    )


def _graph(options: ExportOptions, masked_lm: PreTrainedModel, encoder: Encoder) -> nn.Module:
    """Return the module to compile, in evaluation mode. An optimised one takes over the weights."""
    family = isinstance(masked_lm, ModernBertForMaskedLM)
    if options.graph == "optimised" and not family:
        raise InvalidInput(f"{type(masked_lm).__name__} has no optimised graph; use --graph plain")
    if options.graph == "plain" or not family:
        return LabelLogits(masked_lm, encoder.special.mask, encoder.label_ids).eval()
    model = PreferenceModel(masked_lm, encoder.label_ids, max_tokens=_longest(masked_lm, encoder))
    return BlockedModel(model, encoder.special.mask).eval()


def _longest(masked_lm: PreTrainedModel, encoder: Encoder) -> int:
    """Return how many tokens the graph accepts: the spec's budget, or what the checks need if the model allows it."""
    positions: int = masked_lm.config.max_position_embeddings
    return min(positions, max(encoder.max_tokens, LENGTHS[-1]))


def _lower_precisions(
    options: ExportOptions, encoder: Encoder, graph: nn.Module, onnx_file: Path, temperature: float
) -> dict[str, Gate]:
    """Write each precision below fp32 beside `onnx_file`. Raises PrecisionRefused, InvalidInput."""
    wanted = [precision for precision in dict.fromkeys(options.precisions) if precision != "fp32"]
    if not wanted:
        return {}
    path = options.calibration_pairs()
    if path is None or not isinstance(graph, BlockedModel):
        raise InvalidInput(f"{', '.join(wanted)} needs calibration pairs (--calibration) and an optimised graph")
    spec = options.spec()
    sequences = [
        sequence
        for pair in read_pairs(path)
        for sequence in encoder.encode(pair.comparison(), spec.instruction(pair.domain, or_default=True), swap=True)
    ]
    return {
        precision: lower_precision(
            precision,
            graph,
            sequences,
            reference=onnx_file,
            path=onnx_file.with_name(graph_file(precision)),
            pad_id=encoder.special.pad,
            temperature=temperature,
            max_flips=options.max_flips,
        )
        for precision in wanted
    }


def _save_weights(graph: nn.Module, masked_lm: PreTrainedModel, path: Path) -> None:
    if not isinstance(graph, BlockedModel):
        raise InvalidInput("--weights needs an optimised graph: the torch engine runs the ModernBERT family only")
    save_weights(graph.model, masked_lm.config, path)


def graph_file(precision: str) -> str:
    """Return the name of a precision's graph in a bundle."""
    return MODEL_FILE if precision == "fp32" else MODEL_FILE.replace(".onnx", f".{precision}.onnx")


def _calibrate(options: ExportOptions, encoder: Encoder, onnx_file: Path) -> tuple[float, AutoSwap | None]:
    path = options.calibration_pairs()
    if path is None:
        log.warning("no calibration pairs: the temperature stays 1, so probabilities are not calibrated")
        return 1.0, None
    pairs = read_pairs(path)
    if not pairs:
        raise InvalidInput(f"{path} holds no pairs to calibrate on")
    scorer = Scorer(encoder, OnnxRuntimeCpu(on_cpu(onnx_file), "fp32"), options.spec())
    preferences = score_pairs(scorer, options.spec(), pairs)
    temperature = fit_temperature(raw_margins(preferences))
    if is_bounded(temperature):
        log.warning("%d pairs determine no temperature; %.2g is the end of its range", len(pairs), temperature)
    return temperature, fit_auto_swap(preferences, temperature)


def _provenance(options: ExportOptions) -> Provenance:
    run = options.run()
    return Provenance(
        base_model=options.model,
        adapter=str(options.adapter) if options.adapter else None,
        recipe=run.get("recipe", {}),
        data_sha256=run.get("data_sha256", {}),
        git_commit=_git_commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _held_out(options: ExportOptions) -> dict[str, Any]:
    """Return what training measured on the pairs it held out."""
    metrics = options.run().get("held_out")
    return {"held_out": metrics} if metrics else {}


def _git_commit() -> str | None:
    """Return the commit of this code, marked if files changed since; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
