"""Test that weights stored in fewer bits are the ones that run everywhere, that the gate sees them, what is refused."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.__main__ import main
from export.config import ExportOptions
from export.graph import MODEL_FILE, weights_of, write_onnx
from export.pipeline import export_bundle
from export.stored import store_rounded
from tests.support.kept import kept
from tinyrm.bundle import Bundle
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.engines.onnx_runtime import open_session
from tinyrm.errors import EngineUnavailable, PrecisionRefused

KINDS = ("fp16", "mixed", "int8")
WIDTH, ROWS = 64, 300


class Small(nn.Module):
    """Two tables, a matrix product, a product with its bias, and a row that makes a logit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.places = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.matrix = nn.Parameter(torch.randn(WIDTH, 48) / 8)
        self.linear, self.row = nn.Linear(48, 40), nn.Linear(40, 1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = nn.functional.embedding(input_ids, self.table) + nn.functional.embedding(attention_mask, self.places)
        x = torch.tanh(x)
        logits: torch.Tensor = self.row(torch.tanh(self.linear((x @ self.matrix).mean(dim=1))))
        return logits


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the graph of Small in fp32."""
    path = tmp_path_factory.mktemp("small") / MODEL_FILE
    write_onnx(Small(), path, 512)
    return path


def copy_of(path: Path, folder: Path) -> Path:
    for file in (path, weights_of(path)):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / path.name


@pytest.mark.parametrize("stored", KINDS)
def test_a_graph_computes_to_the_last_bit_what_it_does_with_the_rounded_weights_in_fp32(
    stored: Literal["fp16", "mixed", "int8"], written: Path, tmp_path: Path
) -> None:
    module, before = Small(), Small()
    path = copy_of(written, tmp_path)
    store_rounded(module, path, stored)
    # The graph in fp32 again, with the weights that the module has now.
    model, rounded = onnx.load(written), dict(module.named_parameters())
    for tensor in model.graph.initializer:
        if tensor.name in rounded:
            tensor.CopyFrom(numpy_helper.from_array(rounded[tensor.name].detach().numpy(), tensor.name))
    onnx.save(model, tmp_path / "wide.onnx")
    ids = np.random.default_rng(0).integers(0, ROWS, (3, 20))
    runs = [open_session(file, threads=1) for file in (path, tmp_path / "wide.onnx", written)]
    logits, wide, exact = (run(ids, np.ones_like(ids)) for run in runs)
    np.testing.assert_array_equal(logits, wide)
    assert 0 < np.abs(logits - exact).max() < 0.02
    unequal = {name for name, weight in before.named_parameters() if not torch.equal(weight, rounded[name])}
    assert unequal == {"table", "places", "matrix", "linear.weight"}, "biases and rows of logits stay as they are"


@pytest.mark.parametrize(("stored", "share"), [("fp16", 1 / 2), ("mixed", 1 / 2), ("int8", 1 / 4 + 1 / 32)])
def test_the_file_is_a_half_or_a_quarter_and_constants_are_widened_once(
    stored: Literal["fp16", "mixed", "int8"], share: float, written: Path, tmp_path: Path
) -> None:
    path = copy_of(written, tmp_path)
    store_rounded(Small(), path, stored)
    assert weights_of(path).stat().st_size < weights_of(written).stat().st_size * (share + 0.03)
    onnxruntime = sys.modules["onnxruntime"]  # as the engines imported it, with its reports off
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(path, options)
    graph = onnx.load(tmp_path / "run.onnx").graph
    small = {tensor.name for tensor in graph.initializer if tensor.data_type != TensorProto.FLOAT}
    products = [node for node in graph.node if "MatMul" in node.op_type or "Gemm" in node.op_type]
    assert len(products) == 3
    assert all(node.op_type in {"MatMul", "Gemm", "FusedMatMul", "FusedGemm"} for node in products)
    assert not small & {name for node in products for name in node.input}


def test_rows_of_zeros_and_rows_that_blocks_do_not_fill_are_stored(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(20, 33)).astype(np.float32)
    table[3] = 0
    path, module = tmp_path / MODEL_FILE, nn.Module()
    module.register_parameter("table", nn.Parameter(torch.from_numpy(table.copy())))
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        "lookup",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [None, None])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None, 33])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=weights_of(path).name)
    store_rounded(module, path, "int8")
    session = sys.modules["onnxruntime"].InferenceSession(path)
    (rows,) = session.run(None, {"input_ids": np.arange(20)[None]})
    np.testing.assert_allclose(rows[0], table, atol=np.abs(table).max() / 127 / 2)
    assert not rows[0, 3].any()
    np.testing.assert_array_equal(rows[0], module.get_parameter("table").detach().numpy())


@pytest.fixture(scope="module", params=KINDS)
def stored_sets(
    request: pytest.FixtureRequest, shared_prompt_bundle_folder: Path, pytestconfig: pytest.Config
) -> Bundle:
    """Export the toy that reads sets with rounded weights. Its weights are random, so the gate is wide open."""
    options = ExportOptions(
        model=str(shared_prompt_bundle_folder.parent / "trained"),
        out=Path("toy"),
        calibration=shared_prompt_bundle_folder.parent / "pairs.jsonl",
        stored=request.param,
        max_weighted_flips=1.0,
    )
    name = f"stored-{options.stored}"
    folder = kept(pytestconfig, name, lambda folder: export_bundle(replace(options, out=folder / "toy")))
    return Bundle.open(folder / "toy")


@pytest.mark.slow
def test_the_manifest_says_how_weights_are_stored_and_what_that_changed(stored_sets: Bundle) -> None:
    manifest = stored_sets.manifest
    assert manifest.stored is not None
    gate = manifest.stored.gate
    assert manifest.calibration is not None
    assert gate.pairs == manifest.calibration.pairs
    assert gate.max_weighted_flips == 1.0
    assert 0 < gate.mean_probability_shift < (0.01 if manifest.stored.dtype == "fp16" else 0.2)
    assert manifest.parity[-1].check == "rounded: torch, onnx"
    assert f"stored {manifest.stored.dtype}" in manifest.calibration.chosen
    assert set(manifest.precisions) == {"fp32"}


@pytest.mark.slow
def test_one_engine_names_another_for_stored_weights(shared_prompt_bundle_folder: Path, stored_sets: Bundle) -> None:
    folder, manifest = stored_sets.folder, stored_sets.manifest
    pairs = manifest.model_copy(update={"reads": "response"})
    with pytest.raises(EngineUnavailable, match=r"does not read weights stored in .* use onnxruntime-cuda"):
        open_engine(Bundle(folder, pairs), EngineOptions("onnxruntime-tensorrt"))


@pytest.mark.slow
def test_rounding_that_flips_too_many_preferences_is_refused_and_nothing_is_written(
    response_bundle_folder: Path, tmp_path: Path
) -> None:
    source = response_bundle_folder.parent
    options = ExportOptions(
        model=str(source / "trained"),
        out=tmp_path / "toy",
        calibration=source / "pairs.jsonl",
        stored="int8",
        max_weighted_flips=-1.0,
    )
    with pytest.raises(PrecisionRefused, match=r"stored int8 flips .* no bundle was written"):
        export_bundle(options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--precision", "int8"], "leave out --weights and lower precisions"),
        (["--weights"], "leave out --weights and lower precisions"),
        (["--graph", "plain"], "--stored need an optimised graph"),
        ([], "stored int8 needs calibration pairs"),
    ],
)
def test_what_cannot_be_combined_is_refused_before_any_work(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "x", "chosen": "y", "rejected": "z"}\n')
    given = ["--calibration", str(pairs)] if options else []
    out = tmp_path / "out"
    assert main(["--model", str(tmp_path / "none"), "--out", str(out), "--stored", "int8", *given, *options]) == 2
    assert reason in capsys.readouterr().err
    assert not out.exists()
