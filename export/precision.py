"""Lower precisions of an optimised graph, and the gate that each must pass."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from scipy.special import expit

from export.cpu_graph import branch_on_padding, on_cpu
from export.graph import weights_of, write_onnx
from export.parity import Run, engine_run, run_alone, run_together, torch_run
from export.smoothquant import channel_maxima, equalise
from tinyrm.batching import collate
from tinyrm.calibration import fit_temperature
from tinyrm.encoding import Encoding
from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu
from tinyrm.errors import PrecisionRefused
from tinyrm.manifest import Gate
from tinyrm.modernbert.blocked import BlockedModel

# Ranges settle within a few dozen sequences; the gate uses the others.
RANGE_SEQUENCES = 128


class _Sequences(CalibrationDataReader):
    """One sequence at a time: no padding enters the ranges."""

    def __init__(self, sequences: Sequence[Encoding], pad_id: int) -> None:
        batches = (collate([sequence], pad_id) for sequence in sequences)
        self._inputs: Iterator[dict[str, NDArray[np.int64]]] = (
            {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask} for batch in batches
        )

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        return next(self._inputs, None)


def lower_precision(
    precision: str,
    graph: BlockedModel,
    sequences: Sequence[Encoding],
    *,
    reference: Path,
    path: Path,
    pad_id: int,
    temperature: float,
    max_flips: float,
) -> Gate:
    """Write `graph` in `precision` to `path` and compare it with the fp32 file `reference`.

    sequences: calibration pairs, both orders. int8 takes its ranges from the first; the gate uses the rest.

    Raises PrecisionRefused.
    """
    graph = copy.deepcopy(graph)
    ranges = min(RANGE_SEQUENCES, len(sequences) // 4 * 2)
    if precision == "int8":
        _write_int8(graph, sequences[:ranges], pad_id, path)
        run: Run = engine_run(OnnxRuntimeCpu(on_cpu(path), "int8"))
    else:
        write_onnx(graph.bfloat16(), path, graph.model.max_tokens)
        run = torch_run(graph)  # rounds where the graph does; ONNX Runtime has no bf16 arithmetic on CPUs
    exact = engine_run(OnnxRuntimeCpu(on_cpu(reference), "fp32"))
    return gate(precision, run, exact, sequences[ranges:], pad_id=pad_id, temperature=temperature, max_flips=max_flips)


def _write_int8(model: BlockedModel, sequences: Sequence[Encoding], pad_id: int, path: Path) -> None:
    """Write static int8: 8-bit activations with one calibrated scale per tensor, weights with one per column.

    Static, because a scale taken from the current batch would make a score depend on its batch-mates. Attention, norms
    and everything computed for the mask alone stay in fp32. Changes `model`.
    """
    maxima, hooks = channel_maxima(model.model)
    run_alone(torch_run(model), sequences, pad_id)
    for hook in hooks:
        hook.remove()
    equalise(model.model, maxima)
    equalised = path.with_name(f"equalised-{path.name}")
    write_onnx(model, equalised, model.model.max_tokens)
    quantize_static(
        str(equalised),
        str(path),
        _Sequences(sequences, pad_id),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_products_at_mask(equalised, len(model.model.layers) - 1),
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )
    for written in (equalised, weights_of(equalised)):
        written.unlink()
    branch_on_padding(path)


def _products_at_mask(graph: Path, last_layer: int) -> list[str]:
    """Return the products computed for the mask's row alone, where rounding would save nothing.

    They are the head's and, in a last layer that is global, all but its keys and values.
    """
    nodes = onnx.load(graph, load_external_data=False).graph.node
    products = {name: node.name for node in nodes if node.op_type == "MatMul" for name in node.input}
    layer = f"layers.{last_layer}."
    keys_and_values = (f"{layer}qkv.weights.1", f"{layer}qkv.weights.2")
    few = [n for n in products if "head." in n or (layer in n and not n.endswith(keys_and_values))]
    return [products[name] for name in few]


def gate(
    precision: str,
    run: Run,
    reference: Run,
    sequences: Sequence[Encoding],
    *,
    pad_id: int,
    temperature: float,
    max_flips: float,
) -> Gate:
    """Compare preferences on pairs in both orders, [A first, B first, A first, ...]. Raises PrecisionRefused."""
    exact, lower = (_margins(run_alone(r, sequences, pad_id)) for r in (reference, run))
    if not np.isfinite(lower).all():
        raise PrecisionRefused(f"{precision} gives logits that are not finite; no bundle was written")
    shift = np.abs(expit(exact / temperature) - expit(lower / temperature))
    mates = list(sequences[:8])
    moved = np.abs(run_together(run, mates, pad_id) - run_alone(run, mates, pad_id))
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
            "Leave the precision out, or allow more with --max-flips"
        )
    return report


def _margins(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    z = (logits[:, 0] - logits[:, 1]).astype(np.float64).reshape(-1, 2)
    margins: NDArray[np.float64] = (z[:, 0] - z[:, 1]) / 2
    return margins
