"""Weights in fewer bits than fp32 in the files: a runtime widens them once, at load, and computes in fp32 as before.

fp16 rounds each weight by itself. int8 holds blocks of BLOCK weights of one output (of one row, in a table), each with
a scale in fp32: weight = scale * q, q an integer of -127 to 127 and scale the largest magnitude of the block / 127.
mixed has tables in int8, where an error meets one token, and matrices in fp16, where it meets all of them.

The graph widens by `Cast` and `Mul`: of constants, which runtimes replace by their result, and of the rows that are
looked up in a table. `DequantizeLinear`, which is made for this, could be fused with the product that follows into a
kernel that rounds activations, too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from export.config import Stored
from export.cpu_graph import branch_on_padding, cpu_file, on_cpu
from export.graph import weights_of
from export.parity import check, pad_rows, probes, run_alone, set_probes, torch_run
from tinyrm.encoding import Encoder
from tinyrm.engines.onnx_runtime import open_session
from tinyrm.manifest import Parity

# One scale for a whole row moves margins 2.7 times as far.
BLOCK = 32
LEVELS = 127
# Which dimension of a matrix its outputs are, by the operator that reads it; of a table, its rows.
OUTPUTS_AT = {"Gather": 0, "Gemm": 0, "MatMul": 1}
# Matrices with fewer outputs make the logits: they are small, and each of their errors is one of the logit.
MIN_OUTPUTS = 8


def store_rounded(graph: nn.Module, path: Path, stored: Stored) -> None:
    """Round the weights in an optimised graph's file `path`, and those of its module `graph`, to the same values.

    Norms, biases and the rows of logits keep fp32, and so do rotary tables. A graph for `on_cpu` is written again.
    """
    model = onnx.load(path)
    parameters = dict(graph.named_parameters())
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    tensors: list[TensorProto] = []
    widening: list[NodeProto] = []
    lookups: dict[str, list[NodeProto]] = {}
    for tensor in model.graph.initializer:
        name, nodes = tensor.name, readers.get(tensor.name, [])
        operators = {node.op_type for node in nodes}
        operator = operators.pop() if len(operators) == 1 else ""
        is_matrix = name in parameters and operator in OUTPUTS_AT and len(tensor.dims) == 2
        if not is_matrix or tensor.dims[OUTPUTS_AT[operator]] < MIN_OUTPUTS:
            tensors.append(tensor)
            continue
        weight = numpy_helper.to_array(tensor)
        transpose = OUTPUTS_AT[operator] == 1
        dtype: Stored = stored if stored != "mixed" else "int8" if operator == "Gather" else "fp16"
        parts, rounded = round_rows(weight.T if transpose else weight, dtype)
        names = [f"{name}/{number}" for number in range(len(parts))]
        tensors += [numpy_helper.from_array(part, its_name) for part, its_name in zip(parts, names, strict=True)]
        if operator == "Gather":
            lookups |= {node.output[0]: look_up(names, node) for node in nodes}
        else:
            widening += widen(names, name, [0, -1], transpose=transpose)
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(rounded.T if transpose else rounded))
    nodes = [*widening, *(each for node in model.graph.node for each in lookups.get(node.output[0], [node]))]
    del model.graph.initializer[:], model.graph.node[:]
    # The widest first, so that each is aligned to its own size in the file.
    tensors.sort(key=lambda tensor: -helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(nodes)
    # Removed, not overwritten: a session that is open goes on with the weights that were there.
    for old in (path, weights_of(path)):
        old.unlink()
    onnx.save(model, path, save_as_external_data=True, location=weights_of(path).name)
    if cpu_file(path).exists():
        branch_on_padding(path)


def check_stored(graph: nn.Module, path: Path, encoder: Encoder, vocab: int) -> Parity:
    """Return the check that the file computes what its module does, whose weights are rounded. Raises ParityFailed."""
    special = encoder.special
    inputs = (set_probes if encoder.reads == "set" else probes)(special, vocab, encoder.max_tokens)
    run = pad_rows(open_session(on_cpu(path)), special.pad)
    return check("rounded: torch, onnx", run_alone(torch_run(graph, special.pad), inputs), run_alone(run, inputs))


def round_rows(rows: NDArray[np.float32], stored: Stored) -> tuple[list[NDArray[Any]], NDArray[np.float32]]:
    """Return what the file holds of rows [outputs, inputs], and their values after rounding.

    It holds them in fp16, or integers [outputs, blocks, block] and their scales [outputs, blocks, 1].
    """
    if stored == "fp16":
        with np.errstate(over="ignore"):  # infinite weights give logits that no check passes
            half = rows.astype(np.float16)
        return [half], half.astype(np.float32)
    # Rows that blocks do not fill are one block each.
    blocks = rows.reshape(len(rows), -1, BLOCK if rows.shape[1] % BLOCK == 0 else rows.shape[1])
    scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(LEVELS)
    scales[scales == 0] = 1
    integers = np.rint(blocks / scales).clip(-LEVELS, LEVELS).astype(np.int8)
    return [integers, scales], (integers.astype(np.float32) * scales).reshape(rows.shape)


def widen(names: Sequence[str], result: str, shape: Sequence[int], *, transpose: bool = False) -> list[NodeProto]:
    """Return the nodes that make fp32 of what `round_rows` returned.

    names: of the rows in fp16, or of the integers and their scales.
    shape: joins the blocks, as `Reshape` takes it; rows in fp16 have none.
    """
    values = f"{result}/rows" if transpose else result
    held, *scales = names
    nodes = [helper.make_node("Cast", [held], [f"{held}/wide" if scales else values], to=TensorProto.FLOAT)]
    if scales:
        nodes += [
            helper.make_node("Mul", [f"{held}/wide", *scales], [f"{held}/blocks"]),
            helper.make_node("Constant", [], [f"{held}/shape"], value_ints=shape),
            helper.make_node("Reshape", [f"{held}/blocks", f"{held}/shape"], [values]),
        ]
    if transpose:
        nodes.append(helper.make_node("Transpose", [values], [result], perm=[1, 0]))
    return nodes


def look_up(names: Sequence[str], gather: NodeProto) -> list[NodeProto]:
    """Return the nodes that look rows up and widen only those: a whole table in fp32 would be kept in memory."""
    (result,), ids = gather.output, gather.input[1]
    found = [f"{result}/{number}" for number in range(len(names))]
    nodes = [helper.make_node("Gather", [name, ids], [own]) for name, own in zip(names, found, strict=True)]
    return nodes + widen(found, result, [0, 0, -1])
