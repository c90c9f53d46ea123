"""Measure matrix products of this machine: torch, ONNX Runtime, OpenVINO; fp32, bf16, int8. Runs in .venv/dev.

One line in, {"products": [[rows, inner, columns], ...], "precisions": [...], "seconds": s, "threads": n}; one line out,
{"rates": [{"runtime", "precision", "shape", "flops_per_s"}, ...], "errors": [...]}. Rates are those of the best call.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from loadtests.bench.workers.protocol import claim_stdout, write

OPSET = 20
Shape = tuple[int, int, int]


def main() -> int:
    channel = claim_stdout()
    write(channel, {"ready": True, "name": "products", "detail": "torch, onnxruntime, openvino"})
    for line in sys.stdin:
        write(channel, measured(json.loads(line)))
    return 0


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Measure every runtime in every precision at every product; what does not work is an entry of `errors`."""
    rates, errors = [], []
    makers = {"torch": torch_product, "onnxruntime": onnxruntime_product, "openvino": openvino_product}
    for shape in (tuple(product) for product in request["products"]):
        for precision in request["precisions"]:
            for runtime, make in makers.items():
                try:
                    product = make(shape, precision, request["threads"])
                    seconds = best_call(product, request["seconds"]) if product else None
                except Exception as error:  # noqa: BLE001  # a runtime that cannot is a result
                    errors.append(f"{runtime} {precision} {shape}: {type(error).__name__}: {error}"[:300])
                    continue
                if seconds is not None:
                    rate = 2 * shape[0] * shape[1] * shape[2] / seconds
                    rates.append({"runtime": runtime, "precision": precision, "shape": shape, "flops_per_s": rate})
    return {"rates": rates, "errors": errors}


def best_call(product: Callable[[], object], budget_s: float) -> float:
    """Return the seconds of the fastest call within the budget, after one to warm up."""
    product()
    best, end = float("inf"), time.perf_counter() + budget_s
    while best == float("inf") or time.perf_counter() < end:
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return best


def torch_product(shape: Shape, precision: str, threads: int) -> Callable[[], object] | None:
    import torch

    if precision == "int8":
        return None
    torch.set_num_threads(threads)
    rows, inner, columns = shape
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, weight = torch.rand(rows, inner, dtype=dtype), torch.rand(columns, inner, dtype=dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    return lambda: torch.mm(a, weight.t(), out=out)


def onnxruntime_product(shape: Shape, precision: str, threads: int) -> Callable[[], object] | None:
    from tinyrm.telemetry import disable_telemetry

    disable_telemetry()
    import onnxruntime as ort

    if precision == "bf16":
        return None  # its CPU kernels have no bf16
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    graph = onnx_product(shape, precision)
    session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    inputs = {"a": activations(shape)}
    return lambda: session.run(None, inputs)


def openvino_product(shape: Shape, precision: str, threads: int) -> Callable[[], object] | None:
    from tinyrm.telemetry import disable_telemetry

    disable_telemetry()
    import openvino as ov

    core = ov.Core()
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(onnx_product(shape, precision)), "CPU", hint)
    request, inputs = compiled.create_infer_request(), {"a": activations(shape)}
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)


def activations(shape: Shape) -> Any:
    import numpy as np

    return np.random.default_rng(17).random(shape[:2], dtype=np.float32)


def onnx_product(shape: Shape, precision: str) -> bytes:
    """Return a @ w as an ONNX graph; in int8, u8 activations times s8 weights between quantize and dequantize nodes."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = shape
    weight = np.random.default_rng(17).random((inner, columns), dtype=np.float32)
    nodes = [helper.make_node("MatMul", ["a", "w"], ["y"])]
    constants: dict[str, Any] = {"w": weight}
    if precision == "int8":
        constants = {
            "wq": (weight * 127).astype(np.int8),
            "ws": np.full(columns, 1 / 127, np.float32),
            "wz": np.zeros(columns, np.int8),
            "as": np.float32(1 / 255),
            "az": np.uint8(0),
            "ys": np.float32(inner / 255),
            "yz": np.uint8(0),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["a", "as", "az"], ["aq"]),
            helper.make_node("DequantizeLinear", ["aq", "as", "az"], ["ad"]),
            helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=1),
            helper.make_node("MatMul", ["ad", "wd"], ["y0"]),
            helper.make_node("QuantizeLinear", ["y0", "ys", "yz"], ["y1"]),
            helper.make_node("DequantizeLinear", ["y1", "ys", "yz"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    sys.exit(main())
