"""Write products in 8 bits into an optimised graph, by operators of ONNX that every runtime has.

    largest = max(ReduceMax(Abs(x)), tiny)          of each row
    y = MatMul(QDQ(x / largest), DQ(q)) * largest

ONNX Runtime fuses the pair of quantisation and product into one in integers. See `export.products` for the numbers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from export.cpu_graph import branch_on_padding, cpu_file
from export.graph import weights_of
from export.products import SMALLEST_ROW, Product, Rounded

# Names of constants that all products share.
AXES, TINY = "int8/axes", "int8/tiny"


def write_int8(model: nn.Module, exact_file: Path, path: Path, products: Sequence[Product], weights: Rounded) -> None:
    """Write the graph `exact_file` to `path` with these products in 8 bits, and the parameters that `model` has now.

    What did not change stays in the file of weights of `exact_file`, which both graphs share.
    """
    graph_model = onnx.load(exact_file, load_external_data=False)
    graph = graph_model.graph
    parameters = {name: value.detach().numpy() for name, value in model.named_parameters()}
    of_weight = {name: product for product in products for name in product.weights()}
    held = {tensor.name: tensor for tensor in graph.initializer}
    if missing := of_weight.keys() - held.keys():
        raise RuntimeError(f"the graph has no weights {sorted(missing)}")
    added: dict[str, NDArray[Any]] = {}
    nodes: list[NodeProto] = []
    inputs: set[str] = set()
    for node in graph.node:
        product = of_weight.get(node.input[1]) if node.op_type == "MatMul" else None
        if product is None:
            nodes.append(node)
            continue
        x, weight = node.input
        if x not in inputs:
            inputs.add(x)
            nodes += rounded_rows(x)
            added |= {
                f"{x}/step": np.array(product.scale, dtype=np.float32),
                f"{x}/zero": np.array(product.zero_point, dtype=np.uint8),
            }
        integers, scales = weights[weight]
        added |= {
            f"{weight}/q": integers,
            f"{weight}/step": scales,
            f"{weight}/zero": np.zeros(len(scales), dtype=np.int8),
        }
        nodes += product_of_integers(x, weight, node.output[0])
    added |= {AXES: np.array([-1], dtype=np.int64), TINY: np.array(SMALLEST_ROW, dtype=np.float32)} if inputs else {}
    kept = [changed(tensor, parameters.get(name), exact_file) for name, tensor in held.items() if name not in of_weight]
    # The widest first, so that each is aligned to its own size in the file.
    new = sorted(added.items(), key=lambda item: -item[1].itemsize)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*kept, *(numpy_helper.from_array(value, name) for name, value in new)])
    graph.node.extend(nodes)
    # Removed, not overwritten: a session that is open goes on with the weights that were there.
    for old in (path, weights_of(path), cpu_file(path)):
        old.unlink(missing_ok=True)
    onnx.save(graph_model, path, save_as_external_data=True, location=weights_of(path).name)
    if cpu_file(exact_file).exists():
        branch_on_padding(path)


def rounded_rows(x: str) -> list[NodeProto]:
    """Return the nodes that round `x` once, for all products of it: x/integers, dequantised, and x/largest."""
    return [
        helper.make_node("Abs", [x], [f"{x}/sizes"]),
        helper.make_node("ReduceMax", [f"{x}/sizes", AXES], [f"{x}/most"], keepdims=1),
        helper.make_node("Max", [f"{x}/most", TINY], [f"{x}/largest"]),
        helper.make_node("Div", [x, f"{x}/largest"], [f"{x}/unit"]),
        helper.make_node("QuantizeLinear", [f"{x}/unit", f"{x}/step", f"{x}/zero"], [f"{x}/q"]),
        helper.make_node("DequantizeLinear", [f"{x}/q", f"{x}/step", f"{x}/zero"], [f"{x}/integers"]),
    ]


def product_of_integers(x: str, weight: str, result: str) -> list[NodeProto]:
    integers = [f"{weight}/q", f"{weight}/step", f"{weight}/zero"]
    return [
        helper.make_node("DequantizeLinear", integers, [f"{weight}/integers"], axis=1),
        helper.make_node("MatMul", [f"{x}/integers", f"{weight}/integers"], [f"{result}/unit"]),
        helper.make_node("Mul", [f"{result}/unit", f"{x}/largest"], [result]),
    ]


def changed(tensor: TensorProto, value: NDArray[Any] | None, exact_file: Path) -> TensorProto:
    """Return the tensor of a graph, or a new one if the parameter has another value now."""
    if value is None or np.array_equal(numpy_helper.to_array(tensor, str(exact_file.parent)), value):
        return tensor
    return numpy_helper.from_array(value, tensor.name)
