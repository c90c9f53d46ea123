"""The graph that ONNX Runtime runs on a CPU: without padding, global attention does not write its scores to memory.

ONNX `Attention` keeps the scores of all heads, [heads, tokens, tokens], and adds the padding's bias to them. ONNX
Runtime's own `MultiHeadAttention` computes them by blocks that stay in the cache, but accepts no bias when it does. CPU
engines run rows of one length, which have no padding, so this graph holds both operators and chooses by the mask.
OpenVINO has the same operators, but 2026.4 computes wrong results when `If` meets a new shape in int8.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

ENGINE = "onnxruntime-cpu"
RUNTIME_DOMAIN = "com.microsoft"
# The scores of shorter texts fit into the cache, and the operator by blocks costs more to start.
LONG = 256
BY_BLOCKS = "by_blocks"


def on_cpu(graph: Path) -> Path:
    """Return the file that ONNX Runtime runs on a CPU for `graph`: its own if there is one."""
    own = cpu_file(graph)
    return own if own.exists() else graph


def cpu_file(graph: Path) -> Path:
    return graph.with_name(f"{graph.stem}.{ENGINE}.onnx")


def branch_on_padding(path: Path) -> int:
    """Write the optimised graph `path` once more, for `on_cpu`. Return how many layers have two branches in it.

    Both graphs share the file of weights.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    biased = {node.output[0]: producers.get(node.input[3]) for node in graph.node if node.op_type == "Attention"}
    written_out = {output: bias for output, bias in biased.items() if bias is not None and bias.op_type == "Expand"}
    nodes = [
        # Is the batch long and without padding?
        helper.make_node("ReduceMin", ["attention_mask"], ["min_of_mask"], keepdims=0),
        helper.make_node("Cast", ["min_of_mask"], ["no_padding"], to=TensorProto.BOOL),
        helper.make_node("Shape", ["attention_mask"], ["length"], start=1),
        helper.make_node("Constant", [], ["short"], value_ints=[LONG - 1]),
        helper.make_node("Greater", ["length", "short"], ["long"]),
        helper.make_node("And", ["no_padding", "long"], [BY_BLOCKS]),
        *(
            either_attention(node, written_out[node.output[0]]) if node.output[0] in written_out else node
            for node in graph.node
        ),
    ]
    # Without the nodes whose results no other node reads any more.
    read = {name for node in nodes for name in names_read(node)} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if read & set(node.output))
    model.opset_import.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
    onnx.save(model, cpu_file(path))
    return len(written_out)


def either_attention(attention: NodeProto, bias: NodeProto) -> NodeProto:
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
    branches = []
    for nodes in ([whole], [expand, padded]):
        (result,) = nodes[-1].output
        value = helper.make_tensor_value_info(result, TensorProto.FLOAT, [None, None, None])
        branches.append(helper.make_graph(nodes, f"{result}_branch", [], [value]))
    then_branch, else_branch = branches
    return helper.make_node(
        "If", [BY_BLOCKS], [output], name=f"{output}_either", then_branch=then_branch, else_branch=else_branch
    )


def names_read(node: NodeProto) -> Iterator[str]:
    """Yield the names of the values that a node reads, in its branches too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from names_read(inner)
