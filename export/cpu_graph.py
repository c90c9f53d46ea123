"""The graph that ONNX Runtime runs on a CPU: global attention of a batch without padding writes no scores out.

ONNX `Attention` keeps the scores of all heads, [heads, tokens, tokens], and adds the padding's bias to them. ONNX
Runtime's own `MultiHeadAttention` works through blocks that stay in the cache, but takes no bias when it does. CPU
engines run rows of one length, which have no padding, so the graph for ONNX Runtime on a CPU holds both and reads its
mask. OpenVINO has the same operators, but 2026.4 computes wrong results when `If` meets a new shape in int8.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

ENGINE = "onnxruntime-cpu"
RUNTIME_DOMAIN = "com.microsoft"
# Shorter texts' scores fit into the cache, and the operator of blocks costs more to start.
LONG = 512
BY_BLOCKS = "by_blocks"


def on_cpu(graph: Path) -> Path:
    """Return the file that ONNX Runtime runs on a CPU for `graph`: its own if there is one."""
    own = _own(graph)
    return own if own.exists() else graph


def branch_on_padding(path: Path) -> int:
    """Write the optimised graph `path` once more, for `on_cpu`. Return how many layers have two branches in it.

    Both graphs share the file of weights.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    biased = {node.output[0]: producers.get(node.input[3]) for node in graph.node if node.op_type == "Attention"}
    written_out = {output: bias for output, bias in biased.items() if bias is not None and bias.op_type == "Expand"}
    nodes = [_either(n, written_out[n.output[0]]) if n.output[0] in written_out else n for n in graph.node]
    _replace(graph, [*_condition(), *nodes])
    model.opset_import.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
    onnx.save(model, _own(path))
    return len(written_out)


def _own(graph: Path) -> Path:
    return graph.with_name(f"{graph.stem}.{ENGINE}.onnx")


def _condition() -> list[NodeProto]:
    """Return nodes that compute whether the batch is long and has no padding."""
    return [
        helper.make_node("ReduceMin", ["attention_mask"], ["min_of_mask"], keepdims=0),
        helper.make_node("Cast", ["min_of_mask"], ["no_padding"], to=TensorProto.BOOL),
        helper.make_node("Shape", ["attention_mask"], ["length"], start=1),
        helper.make_node("Constant", [], ["short"], value_ints=[LONG - 1]),
        helper.make_node("Greater", ["length", "short"], ["long"]),
        helper.make_node("And", ["no_padding", "long"], [BY_BLOCKS]),
    ]


def _either(attention: NodeProto, bias: NodeProto) -> NodeProto:
    """Return an `If` of both operators. The bias is written out only in the branch that needs it."""
    (output,) = attention.output
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in attention.attribute}
    whole = helper.make_node(
        "MultiHeadAttention",
        attention.input[:3],
        [f"{output}_whole"],
        num_heads=settings["q_num_heads"],
        scale=settings["scale"],
        domain=RUNTIME_DOMAIN,
    )
    expand, padded = NodeProto(), NodeProto()
    expand.CopyFrom(bias)
    expand.output[0] = f"{output}_bias"
    padded.CopyFrom(attention)
    padded.input[3], padded.output[0] = expand.output[0], f"{output}_padded"
    return helper.make_node(
        "If",
        [BY_BLOCKS],
        [output],
        name=f"{output}_either",
        then_branch=_branch([whole]),
        else_branch=_branch([expand, padded]),
    )


def _branch(nodes: list[NodeProto]) -> GraphProto:
    (output,) = nodes[-1].output
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, None, None])
    return helper.make_graph(nodes, f"{output}_branch", [], [value])


def _replace(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Replace the graph's nodes, without those whose results are not read any more."""
    read = {name for node in nodes for name in _reads(node)} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if read & set(node.output))


def _reads(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)
