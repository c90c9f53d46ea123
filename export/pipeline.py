"""From a checkpoint and its adapter to a bundle, if every check passes."""

import logging
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn
from transformers import ModernBertConfig, PreTrainedModel

from export.calibration import calibrate, read_calibration
from export.config import ExportOptions
from export.cpu_graph import ENGINE, branch_on_padding, on_cpu
from export.gate import Limits, compare_preferences, refuse_failed
from export.graph import MODEL_FILE, write_onnx
from export.parity import LENGTHS, Run, check, pad_rows, probes, run_alone, set_probes, torch_run
from export.precision import encode_pairs, graph_file, write_lower_precisions
from export.source import Source, find_source
from export.stored import check_stored, store_rounded
from tinyrm.bundle import refuse_foreign, write_bundle
from tinyrm.encoding import Encoder
from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu, open_session
from tinyrm.errors import InvalidInput
from tinyrm.families.graphs import OPTIMISED, graph_module, has_optimised
from tinyrm.families.pairrm import PairRM, marker_ids
from tinyrm.families.plain import plain_module
from tinyrm.manifest import TOKENIZER_FILE, Calibration, Manifest, Parity, Provenance, StoredWeights
from tinyrm.modernbert.adapter import merge, plain
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.modernbert.checkpoint import load_tokenizer, positions_of, read_geometry, refuse_misfit
from tinyrm.modernbert.files import checkpoint_folder, commit_of, input_errors, weights_sha256
from tinyrm.modernbert.sets import SetModel
from tinyrm.modernbert.weights import save_weights

WEIGHTS_FILE = "weights.safetensors"

log = logging.getLogger(__name__)


def export_bundle(options: ExportOptions) -> Manifest:
    """Merge, compile, check, calibrate and write a bundle; return its manifest.

    Raises ParityFailed, PrecisionRefused, InvalidInput, InvalidTemplate, InvalidBundle; then nothing is written.
    """
    options.check()
    refuse_foreign(options.out)
    source = find_source(options)
    head, spec = source.head, source.spec
    options.refuse_other_base()
    origin, pairs = provenance(options), read_calibration(options)
    refuse_family(options, source)
    tokenizer, special = load_tokenizer(options.tokenizer)
    encoder = Encoder(tokenizer, spec.template, special, spec.max_tokens, scores_alone=head.scores_alone)
    refuse_misfit(tokenizer, spec.max_tokens, source.config)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder)
        onnx_file = written / MODEL_FILE
        loaded, graph, parity = compile_checked(options, source, encoder, onnx_file)
        exact: Run | None = None
        if options.stored != "fp32":
            exact = OnnxRuntimeCpu(on_cpu(onnx_file), "fp32").run
            store_rounded(graph, onnx_file, options.stored)
            parity += (check_stored(graph, onnx_file, encoder, loaded.config.vocab_size),)
        calibrated = calibrate(options, spec, pairs, encoder, onnx_file)
        stored = None
        if exact and options.stored != "fp32":
            sequences = encode_pairs(pairs, encoder, spec)
            name = f"stored {options.stored}"
            report = compare_preferences(
                name,
                OnnxRuntimeCpu(on_cpu(onnx_file), "fp32").run,
                run_alone(exact, sequences),
                sequences,
                temperature=calibrated.temperature,
                limits=Limits.of(options),
            )
            stored = StoredWeights(dtype=options.stored, gate=refuse_failed(name, report))
        lower = write_lower_precisions(
            options, pairs, encoder, graph, onnx_file, spec=spec, temperature=calibrated.temperature
        )
        tokenizer.save(str(written / TOKENIZER_FILE))
        if options.weights:
            assert isinstance(graph, BlockedModel)  # noqa: S101 - refused above
            save_weights(graph.model, loaded.config, written / WEIGHTS_FILE)
        precisions = {precision: graph_file(precision) for precision in ("fp32", *lower)}
        own = {precision: on_cpu(written / name).name for precision, name in precisions.items()}
        return write_bundle(
            options.out,
            {path.name: path for path in sorted(written.iterdir())},
            {
                "name": options.out.name,
                "demo": options.demo,
                "reads": encoder.reads,
                "head": head,
                "architecture": source.recognised.architecture if source.recognised else type(loaded).__name__,
                "spec": spec,
                "special_tokens": special,
                "label_ids": encoder.label_ids if head.kind == "cloze" else None,
                "geometry": read_geometry(loaded.config, head.read_at),
                "parameters": loaded.num_parameters(),
                "graph": "optimised" if isinstance(graph, OPTIMISED) else "plain",
                "precisions": precisions,
                "specialised": {ENGINE: {p: name for p, name in own.items() if name != precisions[p]}},
                "gates": lower,
                "stored": stored,
                "weights": WEIGHTS_FILE if options.weights else None,
                "temperature": calibrated.temperature,
                "temperature_one_order": calibrated.record.temperature_one_order if calibrated.record else None,
                "temperatures": dict(calibrated.temperatures),
                "auto_swap": calibrated.auto_swap,
                "score_scale": calibrated.score_scale,
                "calibration": calibrated.record,
                "provenance": origin,
                "parity": parity,
                "evaluation": held_out(options, calibrated.record),
            },
            options.card,
        )


def held_out(options: ExportOptions, calibration: Calibration | None) -> dict[str, Any]:
    """Return what training measured on its held-out pairs, and what was chosen on the same pairs there and here."""
    measured = options.run().get("held_out")
    if not measured:
        return {}
    chosen = [
        *measured.get("chosen_on", ()),
        *(calibration.chosen if calibration and calibration.held_out else ()),
    ]
    return {"held_out": {**measured, "chosen_on": chosen} if chosen else measured}


def refuse_family(options: ExportOptions, source: Source) -> None:
    """Raise InvalidInput for what only some families have, if the model is of another one."""
    config = source.config
    if options.graph == "optimised" and not has_optimised(config):
        raise InvalidInput(f"{options.model} is a {config.model_type} and has no optimised graph; use --graph plain")
    lower = options.lower_precisions()
    if not isinstance(config, ModernBertConfig) and (options.weights or "bf16" in lower):
        raise InvalidInput(
            f"{options.model} is a {config.model_type}: --weights and bf16 are for the ModernBERT family"
        )
    if lower and not has_optimised(config):
        raise InvalidInput(
            f"{options.model} is a {config.model_type}, which has no optimised graph to round: leave out int8"
        )
    if options.stored != "fp32" and not has_optimised(config):
        raise InvalidInput(
            f"{options.model} is a {config.model_type}, whose plain graph is stored in fp32: leave out --stored"
        )
    if source.head.sets and (options.graph == "plain" or options.weights or "bf16" in lower):
        raise InvalidInput(
            f"{options.model} reads sets, which have one graph: leave out --graph plain, --weights and bf16"
        )
    if options.weights and source.recognised and source.recognised.layers:
        raise InvalidInput(f"{options.model} has layers of its own before its score, so leave out --weights")


def compile_checked(
    options: ExportOptions, source: Source, encoder: Encoder, onnx_file: Path
) -> tuple[PreTrainedModel, nn.Module, tuple[Parity, ...]]:
    """Write the merged model's graph to `onnx_file`. Return the merged model, the graph, and every passed check."""
    special, head = encoder.special, source.head
    label_ids = encoder.label_ids if head.kind == "cloze" else None

    def run_plain(loaded: PreTrainedModel) -> Run:
        return torch_run(plain_module(loaded, head, special, label_ids), special.pad)

    model = source.load(options)
    markers = marker_ids(model.config) if isinstance(model, PairRM) else ()
    of_sets = isinstance(plain(model), SetModel)
    vocab = plain(model).config.vocab_size
    if of_sets:
        inputs = set_probes(special, vocab, encoder.max_tokens)
    else:
        inputs = probes(special, vocab, encoder.max_tokens, markers)
    with input_errors(f"{options.model} cannot run these sequences"):
        adapted = run_alone(run_plain(plain(model)), inputs)
    merged = merge(model)
    reference = run_alone(run_plain(merged), inputs)
    log.info("compiling the graph")
    # The spec's budget, or what the checks need if the model allows it.
    longest = max(encoder.max_tokens, LENGTHS[-1])
    max_tokens = min(positions_of(merged.config) or longest, longest)
    optimised = options.graph != "plain"
    graph = graph_module(merged, head, special, label_ids, max_tokens=max_tokens, optimised=optimised)
    with input_errors(f"a {type(merged).__name__} cannot be compiled"):
        write_onnx(graph, onnx_file, encoder.max_set_tokens if of_sets else max_tokens)
    if isinstance(graph, OPTIMISED) and not of_sets:
        branch_on_padding(onnx_file)
    run = pad_rows(open_session(on_cpu(onnx_file)), special.pad)
    alone = run_alone(run, inputs)
    # Without the longest: a dozen rows of 8,192 tokens would not fit into memory.
    mixed = [i for i, sequence in enumerate(inputs) if len(sequence) <= LENGTHS[-1]]
    together = run([inputs[i] for i in mixed])
    checks = (
        check("adapter unmerged, merged", adapted, reference),
        check("torch, onnx", reference, alone),
        check("alone, in a batch", alone[mixed, : together.shape[1]], together),
    )
    return merged, graph, checks


def provenance(options: ExportOptions) -> Provenance:
    """Return where the model comes from: its weights, its training run, and the commit of this code."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)  # noqa: S603
        git_commit = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # outside a checkout
        git_commit = None
    run, base = options.run(), checkpoint_folder(options.model, options.revision)
    elsewhere = ("recipe", "data_sha256", "data_revisions", "held_out")
    return Provenance(
        base_model=options.model,
        base_commit=commit_of(base),
        base_sha256=weights_sha256(str(base)),
        adapter=str(options.adapter) if options.adapter else None,
        adapter_sha256=weights_sha256(str(options.adapter)) if options.adapter else None,
        recipe=run.get("recipe", {}),
        training={name: value for name, value in run.items() if name not in elsewhere},
        data_sha256=run.get("data_sha256", {}),
        data_revisions=run.get("data_revisions", {}),
        git_commit=git_commit,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
