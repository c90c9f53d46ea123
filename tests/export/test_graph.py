"""Test that the graph computes two logits, and nothing as large as the vocabulary except the embedding look-up."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.conftest import REPOSITORY
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.onnx_runtime import OnnxRuntimeCpu


@pytest.fixture(scope="module")
def graph(bundle_folder: Path) -> onnx.GraphProto:
    return onnx.load(bundle_folder / "model.onnx").graph


def dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_batch_and_length_are_dynamic_and_the_output_is_two_logits(graph: onnx.GraphProto) -> None:
    assert {value.name: dimensions(value) for value in graph.input} == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "tokens"],
    }
    assert {value.name: dimensions(value) for value in graph.output} == {"logits": ["batch", 2]}


@pytest.mark.parametrize("shape", [(1, 3), (1, 129), (5, 64), (3, 257)])
def test_any_batch_and_length_run(bundle_folder: Path, shape: tuple[int, int]) -> None:
    engine = OnnxRuntimeCpu(bundle_folder / "model.onnx", "fp32")
    ids = np.full(shape, 9, dtype=np.int64)
    ids[:, -2] = 4
    logits = engine.run([Encoding(row, Truncation()) for row in ids])
    assert logits.shape == (shape[0], 2)
    assert np.isfinite(logits).all()


def test_no_matrix_product_has_the_vocabularys_size(graph: onnx.GraphProto, bundle_folder: Path) -> None:
    """Only gather from the embedding matrix: the tied decoder is never multiplied as a whole."""
    geometry = Bundle.open(bundle_folder).manifest.geometry
    large = {w.name for w in graph.initializer if geometry.vocab in w.dims and geometry.hidden in w.dims}
    assert large, "the embedding matrix is there"
    readers = {node.op_type for node in graph.node if large & set(node.input)}
    assert readers <= {"Gather", "GatherND"}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    inferred = onnx.shape_inference.infer_shapes(onnx.load(bundle_folder / "model.onnx")).graph
    shapes = {v.name: dimensions(v) for v in (*inferred.value_info, *inferred.output)}
    assert len(products) > 4 * geometry.layers
    assert all(geometry.vocab not in shapes[node.output[0]] for node in products)


def test_the_file_holds_the_weights_once(graph: onnx.GraphProto, bundle_folder: Path) -> None:
    manifest = Bundle.open(bundle_folder).manifest
    floats = [numpy_helper.to_array(w) for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT]
    geometry = manifest.geometry
    rotary = 4 * 1024 * geometry.hidden // geometry.heads // 2  # cosines and sines, global and local
    stored = sum(array.size for array in floats) - rotary
    # The decoder's bias falls away but for two entries.
    assert manifest.parameters * 0.98 < stored < manifest.parameters * 1.1


def test_onnxruntime_has_a_graph_of_its_own_and_shares_the_weights(bundle_folder: Path) -> None:
    own = onnx.load(bundle_folder / "model.onnxruntime-cpu.onnx", load_external_data=False).graph
    portable = onnx.load(bundle_folder / "model.onnx", load_external_data=False).graph
    # Four layers, two of them global, and the last of those computes the mask's row only.
    assert [node.op_type for node in own.node].count("If") == 1
    assert not any(node.op_type == "If" or node.domain for node in portable.node)
    stored = {tensor.name: tensor.SerializeToString() for tensor in portable.initializer}
    assert {tensor.name: tensor.SerializeToString() for tensor in own.initializer} == stored
    outside = [tensor for tensor in own.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert {entry.value for t in outside for entry in t.external_data if entry.key == "location"} == {"model.onnx.data"}


@pytest.mark.parametrize("length", [100, 511, 512, 900])
def test_both_graphs_give_the_same_logits(bundle_folder: Path, length: int) -> None:
    ids = np.random.default_rng(0).integers(9, 380, (2, length))
    ids[:, -2] = 4
    portable, own = (
        OnnxRuntimeCpu(bundle_folder / name, "fp32").run([Encoding(row, Truncation()) for row in ids])
        for name in ("model.onnx", "model.onnxruntime-cpu.onnx")
    )
    np.testing.assert_allclose(own, portable, atol=1e-4)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnxruntime-cpu.onnx"])
def test_a_graph_contains_no_path_of_the_machine_that_made_it(bundle_folder: Path, name: str) -> None:
    content = (bundle_folder / name).read_bytes()
    assert str(REPOSITORY).encode() not in content
    assert b"stack_trace" not in content
