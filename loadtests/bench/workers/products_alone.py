"""The matrix products of a ModernBERT without anything between them: what ONNX Runtime takes for those alone.

Each layer has weights of its own, so they come from memory as in a model. Products that read the same rows in a model
follow one another here, which changes no size: first those of all attentions, then those of all MLPs.
"""

import json
import sys
from typing import Any

from loadtests.bench.workers.protocol import Call, Prepare, Request, arguments, serve
from tinyrm.flops import Geometry

OPSET = 20


def load() -> tuple[Prepare, str]:
    import numpy as np
    import onnxruntime as ort

    options = arguments(__doc__)
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    hidden, wide, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    graph = chain(sizes(hidden, wide, layers))
    session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])

    def prepare(request: Request) -> Call:
        random = np.random.default_rng(17)
        # One run for each sequence, as in the engine: padding is no work.
        rows = [random.standard_normal((sum(mask), hidden), dtype=np.float32) for mask in request["attention_mask"]]

        def call() -> None:
            for one in rows:
                session.run(None, {"x": one})

        return call

    return prepare, f"onnxruntime {ort.__version__}"


def sizes(hidden: int, wide: int, layers: int) -> list[tuple[int, int]]:
    """Return the inner and outer size of each product, each following on the last.

    The last layer has only keys and values: the logits need one row of the rest.
    """
    into, back = (hidden, wide), (wide, hidden)
    attention = [(hidden, hidden)] * (4 * (layers - 1) + 2)
    return attention + [into if place % 2 == 0 else back for place in range(3 * (layers - 1))]


def flops(geometry: Geometry, tokens: int) -> int:
    """Return the operations of all products."""
    products = sizes(geometry.hidden, geometry.intermediate, geometry.layers)
    return sum(2 * tokens * inner * outer for inner, outer in products)


def chain(products: list[tuple[int, int]]) -> bytes:
    """Return the ONNX graph of x @ w0 @ w1 ..., whose values stay near 1."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(17)
    nodes, weights, value = [], [], "x"
    for place, (inner, outer) in enumerate(products):
        weight: Any = random.standard_normal((inner, outer), dtype=np.float32) / np.float32(inner**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{place}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{place}"], [f"y{place}"]))
        value = f"y{place}"
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", products[0][0]])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["rows", products[-1][1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    sys.exit(serve("products alone", load))
