"""Lower precisions of an optimised graph, and the gate that each must pass."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from scipy.special import expit
from torch import nn

from export.calibration import evenly
from export.config import ExportOptions
from export.cpu_graph import branch_on_padding, on_cpu
from export.graph import MODEL_FILE, weights_of, write_onnx
from export.parity import Run, run_alone, torch_run
from export.smoothquant import channel_maxima, equalise
from tinyrm.batching import collate
from tinyrm.calibration import fit_temperature
from tinyrm.encoding import Encoder, Encoding
from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu
from tinyrm.errors import PrecisionRefused
from tinyrm.manifest import Gate
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.pairs import PreferencePair
from tinyrm.readout import read_columns, read_out
from tinyrm.spec import Spec

# Ranges settle within a few dozen pairs in both orders; the gate uses the others.
RANGE_PAIRS = 64


class CalibrationSequences(CalibrationDataReader):
    """Feed one sequence at a time, so that no padding enters the ranges."""

    def __init__(self, sequences: Sequence[Encoding], pad_id: int) -> None:
        batches = (collate([sequence], pad_id) for sequence in sequences)
        self._inputs: Iterator[dict[str, NDArray[np.int64]]] = (
            {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask} for batch in batches
        )

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        return next(self._inputs, None)


def graph_file(precision: str) -> str:
    """Return the name of a precision's graph in a bundle."""
    return MODEL_FILE if precision == "fp32" else MODEL_FILE.replace(".onnx", f".{precision}.onnx")


def write_lower_precisions(
    options: ExportOptions,
    pairs: Sequence[PreferencePair],
    encoder: Encoder,
    graph: nn.Module,
    onnx_file: Path,
    *,
    spec: Spec,
    temperature: float,
) -> dict[str, Gate]:
    """Write each precision below fp32 beside the fp32 graph `onnx_file`. Return how far each is from that graph.

    int8 takes its ranges from calibration pairs of all domains and lengths; the gate uses the others.

    Raises PrecisionRefused.
    """
    wanted = options.lower_precisions()
    if not wanted or not isinstance(graph, BlockedModel):
        return {}
    pad_id = encoder.special.pad
    ranging = evenly(pairs, min(RANGE_PAIRS, len(pairs) // 4))
    chosen = set(map(id, ranging))
    ranges = encode_pairs(ranging, encoder, spec)
    others = encode_pairs((pair for pair in pairs if id(pair) not in chosen), encoder, spec)
    exact = OnnxRuntimeCpu(on_cpu(onnx_file), "fp32").run
    gates: dict[str, Gate] = {}
    for precision in wanted:
        lower, path = copy.deepcopy(graph), onnx_file.with_name(graph_file(precision))
        if precision == "int8":
            write_int8(lower, ranges, pad_id, path)
            run: Run = OnnxRuntimeCpu(on_cpu(path), "int8").run
        else:
            lower.model.round_to(torch.bfloat16, tables=True)
            write_onnx(lower, path, lower.model.max_tokens)
            run = torch_run(lower, pad_id)  # rounds where the graph does; ONNX Runtime has no bf16 arithmetic on CPUs
        gates[precision] = gate(precision, run, exact, others, temperature=temperature, max_flips=options.max_flips)
    return gates


def encode_pairs(pairs: Iterable[PreferencePair], encoder: Encoder, spec: Spec) -> list[Encoding]:
    """Return the sequences of all pairs, the better response as A; as many of each as `Encoder.encode` returns."""
    instructions = ((pair, spec.instruction(pair.domain, or_default=True)) for pair in pairs)
    return [
        sequence
        for pair, instruction in instructions
        for sequence in encoder.encode(pair.comparison(), instruction, swap=True)
    ]


def write_int8(model: BlockedModel, sequences: Sequence[Encoding], pad_id: int, path: Path) -> None:
    """Write static int8: 8-bit activations with one calibrated scale per tensor, weights with one per column.

    Static, because a scale taken from the current batch would make a score depend on its batch-mates. Attention, norms
    and everything computed for one row of a text stay in fp32. Changes `model`.
    """
    maxima, hooks = channel_maxima(model.model)
    run_alone(torch_run(model, pad_id), sequences)
    for hook in hooks:
        hook.remove()
    equalise(model.model, maxima)
    equalised = path.with_name(f"equalised-{path.name}")
    write_onnx(model, equalised, model.model.max_tokens)
    quantize_static(
        str(equalised),
        str(path),
        CalibrationSequences(sequences, pad_id),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=products_of_one_row(equalised, model.model),
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )
    for written in (equalised, weights_of(equalised)):
        written.unlink()
    branch_on_padding(path)


def products_of_one_row(graph: Path, model: PreferenceModel) -> list[str]:
    """Return the matrix products that only the row passes that is read, where rounding would save nothing.

    They are those of the head and, in a last layer that is global, all but its keys and values; with a mean of all
    rows, only those of the head.
    """
    nodes = onnx.load(graph, load_external_data=False).graph.node
    products = {name: node.name for node in nodes if node.op_type == "MatMul" for name in node.input}
    layer = f"layers.{len(model.layers) - 1}."
    keys_and_values = (f"{layer}qkv.weights.1", f"{layer}qkv.weights.2")

    def is_of_one_row(name: str) -> bool:
        return model.read_at != "mean" and layer in name and not name.endswith(keys_and_values)

    return [product for name, product in products.items() if "head." in name or is_of_one_row(name)]


def gate(
    precision: str,
    run: Run,
    reference: Run,
    sequences: Sequence[Encoding],
    *,
    temperature: float,
    max_flips: float,
) -> Gate:
    """Return how far `run` is from `reference` in its preferences. Raises PrecisionRefused.

    sequences: pairs, two by two: A first, B first, A first, ...; or A, B, A, ... if responses are read alone. A
        sequence that is a set is a pair by itself.
    """
    results = [run_alone(some, sequences) for some in (reference, run)]
    if not np.isfinite(results[1]).all():
        raise PrecisionRefused(f"{precision} returns logits that are not finite; no bundle was written")
    each = 1 if sequences[0].columns else 2
    exact, lower = (
        np.array(
            [
                read_out(read_columns(sequences[i : i + each], logits[i : i + each]), 1.0).margin
                for i in range(0, len(sequences), each)
            ]
        )
        for logits in results
    )
    shift = np.abs(expit(exact / temperature) - expit(lower / temperature))
    mates = list(sequences[:8])
    moved = np.abs(run(mates) - run_alone(run, mates))
    report = Gate(
        pairs=len(exact),
        flips=float(np.mean((exact > 0) != (lower > 0))),
        max_flips=max_flips,
        mean_probability_shift=float(shift.mean()),
        max_probability_shift=float(shift.max()),
        temperature=fit_temperature(lower),
        alone_and_in_a_batch=float(moved.max()),
    )
    if report.flips > max_flips:
        raise PrecisionRefused(
            f"{precision} flips {report.flips:.2%} of {report.pairs} preferences, {max_flips:.2%} are allowed "
            f"(probabilities move by {report.mean_probability_shift:.4f} on average); no bundle was written. "
            "Leave it out, or allow more with --max-flips"
        )
    return report
