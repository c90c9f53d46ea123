"""python -m loadtests.bench.workers.int8: whether 8 bits pay on this machine: products by scheme, or a bundle.

Processor time of one thread, so that other processes change little; schemes take turns within each round, and ratios to
fp32 on ONNX Runtime are printed. Runs in .venv/dev.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tabulate import tabulate

from tinyrm.bundle import Bundle
from tinyrm.command_line import parse
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.errors import TinyRMError
from tinyrm.output import standard_output

# Tokens x inputs x outputs of MiniLM and of ModernBERT-base.
PRODUCTS = ("256x384x384", "256x384x1536", "256x1536x384", "512x768x768", "512x768x1152", "512x1152x768")
RUNTIME_DOMAIN = "com.microsoft"
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Options:
    """Time products in 8 bits by scheme, or a bundle in fp32 and int8."""

    products: tuple[str, ...] = PRODUCTS
    """Sizes: rows x inputs x outputs."""
    bundle: Path | None = None
    """Time this bundle instead, which has int8."""
    tokens: tuple[int, ...] = (64, 128, 256, 512)
    """Lengths of its sequences."""
    rounds: int = 25
    """Runs of each scheme, of which the median counts."""


class Graph(NamedTuple):
    """Nodes from `a` to `y`, and their constants."""

    nodes: list[NodeProto]
    constants: dict[str, NDArray[Any]]


def main() -> int:
    options = parse(Options, prog="python -m loadtests.bench.workers.int8")
    try:
        print(of_bundle(options, options.bundle) if options.bundle else of_products(options))
    except TinyRMError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def of_products(options: Options) -> str:
    """Return a table: a row for each scheme, a column for each product."""
    columns: dict[str, dict[str, str]] = {}
    for product in options.products:
        rows, inputs, outputs = map(int, product.split("x"))
        dice = np.random.default_rng(17)
        a = dice.normal(size=(rows, inputs)).clip(-3.9, 3.9).astype(np.float32)
        weight = dice.normal(scale=0.05, size=(inputs, outputs)).astype(np.float32)
        medians = take_turns(dict(schemes(a, weight)), options.rounds)
        exact = medians.pop("fp32")
        columns[f"{product}, fp32 {2e-9 * rows * inputs * outputs / exact:.0f} GFLOP/s"] = {
            name: f"{exact / seconds:.2f}" for name, seconds in medians.items()
        }
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    body = [[name, *(column.get(name, "-") for column in columns.values())] for name in names]
    return tabulate(body, headers=["scheme", *columns], tablefmt="github", disable_numparse=True)


def of_bundle(options: Options, folder: Path) -> str:
    """Return a table of one sequence of each length."""
    bundle = Bundle.open(folder)
    special, vocab = bundle.manifest.special_tokens, bundle.manifest.geometry.vocab
    engines = {
        precision: open_engine(bundle, EngineOptions("onnxruntime-cpu", precision=precision, threads=1))
        for precision in ("fp32", "int8")
    }
    body = []
    for tokens in options.tokens:
        ids = np.random.default_rng(17).integers(min(1000, vocab // 2), vocab, tokens)
        ids[0], ids[tokens // 3], ids[-2], ids[-1] = special.cls, special.sep, special.mask, special.sep
        sequence = Encoding(ids, Truncation())
        runs: dict[str, Callable[[], object]] = {
            name: partial(engine.run, [sequence]) for name, engine in engines.items()
        }
        medians = take_turns(runs, options.rounds)
        times = [f"{1000 * medians[name]:,.1f}" for name in engines]
        body.append([tokens, *times, f"{medians['fp32'] / medians['int8']:.2f}"])
    return tabulate(body, headers=["tokens", "fp32, ms", "int8, ms", "times as fast"], tablefmt="github")


def take_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median processor seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2):
        for run in runs.values():
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    return {name: float(np.median(each)) for name, each in times.items()}


def schemes(a: Matrix, weight: Matrix) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each scheme with a function that computes a @ weight by it."""
    exact = Graph([helper.make_node("MatMul", ["a", "w"], ["y"])], {"w": weight})
    static = {
        "8-bit weights (may saturate)": static_product(weight, 127),
        "7-bit weights": static_product(weight, 64),
        "unsigned 8-bit weights": static_product(weight, 127, unsigned=True),
    }
    yield "fp32", onnxruntime_run(exact, a)
    for name, graph in static.items():
        yield f"one scale, {name}", onnxruntime_run(graph, a)
    yield "one scale for each row", onnxruntime_run(row_product(weight), a)
    yield "`DynamicQuantizeMatMul`", onnxruntime_run(dynamic_product(weight), a)
    for block in (32, 128):
        yield f"`MatMulNBits`, blocks of {block}", onnxruntime_run(blocks_product(weight, block), a)
    for name, graph in {"fp32": exact, "one scale, 7-bit weights": static["7-bit weights"]}.items():
        yield f"OpenVINO, {name}", openvino_run(graph, a, group=0)
    constants = {name: static["7-bit weights"].constants[name] for name in ("wq", "ws", "wz")}
    nodes = [
        helper.make_node("DequantizeLinear", list(constants), ["w"], axis=1),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    yield "OpenVINO, groups of 32 at run time", openvino_run(Graph(nodes, constants), a, group=32)


def static_product(weight: Matrix, levels: int, *, unsigned: bool = False, unit: str = "a", end: str = "y") -> Graph:
    largest = np.abs(weight).max(axis=0)
    integers = np.rint(weight / largest * levels).astype(np.int16) + (128 if unsigned else 0)
    kind = np.uint8 if unsigned else np.int8
    constants = {
        "as": np.array(4 / 127, dtype=np.float32),
        "az": np.array(128, dtype=np.uint8),
        "wq": integers.astype(kind),
        "ws": (largest / levels).astype(np.float32),
        "wz": np.full(weight.shape[1], 128 if unsigned else 0, dtype=kind),
    }
    nodes = [
        helper.make_node("QuantizeLinear", [unit, "as", "az"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", "as", "az"], ["ad"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["ad", "wd"], [end]),
    ]
    return Graph(nodes, constants)


def row_product(weight: Matrix) -> Graph:
    """As `export.int8_graph` writes it."""
    nodes, constants = static_product(weight, 64, unit="unit", end="of_unit")
    constants |= {
        "as": np.array(1 / 127, dtype=np.float32),
        "axes": np.array([-1], dtype=np.int64),
        "tiny": np.array(1e-12, dtype=np.float32),
    }
    before = [
        helper.make_node("Abs", ["a"], ["sizes"]),
        helper.make_node("ReduceMax", ["sizes", "axes"], ["most"], keepdims=1),
        helper.make_node("Max", ["most", "tiny"], ["largest"]),
        helper.make_node("Div", ["a", "largest"], ["unit"]),
    ]
    return Graph([*before, *nodes, helper.make_node("Mul", ["of_unit", "largest"], ["y"])], constants)


def dynamic_product(weight: Matrix) -> Graph:
    constants = static_product(weight, 64).constants
    kept = {name: constants[name] for name in ("wq", "ws")}
    return Graph([helper.make_node("DynamicQuantizeMatMul", ["a", *kept], ["y"], domain=RUNTIME_DOMAIN)], kept)


def blocks_product(weight: Matrix, block: int) -> Graph:
    inputs, outputs = weight.shape
    blocks = weight.T.reshape(outputs, inputs // block, block)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / 127
    constants = {
        "wq": (np.rint(blocks / scales) + 128).astype(np.uint8),
        "ws": scales.astype(np.float32).ravel(),
    }
    sizes = {"K": inputs, "N": outputs, "bits": 8, "block_size": block, "accuracy_level": 4}
    return Graph([helper.make_node("MatMulNBits", ["a", *constants], ["y"], domain=RUNTIME_DOMAIN, **sizes)], constants)


def serialised(graph: Graph, shape: Sequence[int], outputs: int) -> bytes:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
        for name, width in (("a", shape[1]), ("y", outputs))
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    whole = helper.make_graph(graph.nodes, "product", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
    return bytes(helper.make_model(whole, opset_imports=opsets, ir_version=10).SerializeToString())


def onnxruntime_run(graph: Graph, a: Matrix) -> Callable[[], object]:
    import onnxruntime  # after tinyrm.engines, which switches its reports off

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    content = serialised(graph, a.shape, outputs_of(graph))
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def openvino_run(graph: Graph, a: Matrix, group: int) -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 1,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
    }
    model = core.read_model(serialised(graph, a.shape, outputs_of(graph)))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer({"a": a}, share_inputs=True, share_outputs=True)


def outputs_of(graph: Graph) -> int:
    """Return the outputs of the product: one scale each in 8 bits, columns of the matrix in fp32."""
    constants = graph.constants
    if "w" in constants:
        return int(constants["w"].shape[1])
    return int(constants["wq"].shape[0] if constants["wq"].ndim == 3 else constants["wq"].shape[1])


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
