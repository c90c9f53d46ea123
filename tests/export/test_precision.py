"""Test that a lower precision is written only if it changes few preferences, and never depends on batch-mates."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.config import ExportOptions
from export.parity import TOLERANCE, probes, run_alone, torch_run
from export.pipeline import export_bundle
from export.smoothquant import channel_maxima, equalise
from tests.conftest import Trained, export_toy
from tests.support.kept import kept
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoder, Encoding
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.engines.torch_gpu import open_torch_cuda
from tinyrm.errors import InvalidInput, PrecisionRefused
from tinyrm.modernbert.adapter import load_with_adapter, merge
from tinyrm.modernbert.blocked import BlockedModel
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.pairs import PreferencePair

pytestmark = pytest.mark.slow

WORDS = ["yes", "no", "add", "return", "option", "safer", "I cannot help with that.", "2 + 2 = 4."]


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(1, 30)))) for _ in range(160)]
    pairs = [
        PreferencePair(prompt="Which?", chosen=a, rejected=b) for a, b in zip(texts[::2], texts[1::2], strict=True)
    ]
    path.write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    return path


@pytest.fixture(scope="module")
def quantised(trained: Trained, pairs_file: Path, pytestconfig: pytest.Config) -> Bundle:
    """Export the toy model in all precisions. Its weights are large, so the gate is wide open."""

    def make(folder: Path) -> None:
        precisions = ("fp32", "int8", "bf16")
        out = folder / "quantised"
        export_toy(trained, out, calibration=pairs_file, precisions=precisions, max_weighted_flips=1.0, weights=True)

    return Bundle.open(kept(pytestconfig, "quantised", make) / "quantised")


@pytest.fixture(scope="module")
def readings(encoder: Encoder, quantised: Bundle) -> list[Encoding]:
    return probes(encoder.special, quantised.manifest.geometry.vocab, encoder.max_tokens)


def test_the_manifest_contains_the_report_of_each_precision(quantised: Bundle) -> None:
    manifest = quantised.manifest
    assert set(manifest.precisions) == {"fp32", "int8", "bf16"}
    for report in manifest.gates.values():
        assert report.pairs >= 40
        assert 0 < report.mean_probability_shift < 0.2
        assert (report.max_weighted_flips, report.max_flips) == (1.0, None)
        assert report.weighted_flips is not None
        assert 0 <= report.weighted_flips <= report.flips
        assert report.temperature > 0
    assert manifest.gates["bf16"].flips < 0.15


def test_the_weights_give_the_logits_of_the_graph(
    quantised: Bundle, readings: list[Encoding], encoder: Encoder
) -> None:
    engine = open_torch_cuda(quantised.weights_file(), quantised.manifest, "fp32", device="cpu")
    expected = run_alone(open_engine(quantised, EngineOptions("onnxruntime-cpu")).run, readings)
    np.testing.assert_allclose(engine.run(readings), expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino-cpu"])
def test_int8_scores_do_not_depend_on_batch_mates(
    name: str, quantised: Bundle, readings: list[Encoding], encoder: Encoder
) -> None:
    run = open_engine(quantised, EngineOptions(name, precision="int8")).run
    alone = run_alone(run, readings)
    assert np.array_equal(run(readings), alone)
    exact = run_alone(open_engine(quantised, EngineOptions(name)).run, readings)
    assert 0 < np.abs(alone - exact).max() < np.ptp(exact) / 3, "rounded, but of the same opinion"
    assert np.corrcoef(alone.ravel(), exact.ravel())[0, 1] > 0.9


def test_int8_weights_are_integers_in_the_file(quantised: Bundle) -> None:
    graph = onnx.load(quantised.model_file("int8")).graph
    sizes = {w.name: int(np.prod(w.dims)) for w in graph.initializer if w.data_type == onnx.TensorProto.INT8}
    # Three whole layers, and the keys and values of the last.
    assert sum(size for size in sizes.values() if size > 48) == 3 * (4 * 32 * 32 + 3 * 32 * 48) + 2 * 32 * 32


@pytest.mark.slow
def test_a_precision_that_flips_too_many_preferences_is_refused_and_nothing_is_written(
    trained: Trained, pairs_file: Path, tmp_path: Path
) -> None:
    options = ExportOptions(
        model=str(trained.base),
        adapter=trained.adapter,
        out=tmp_path / "toy",
        calibration=pairs_file,
        precisions=("fp32", "int8"),
        max_weighted_flips=-1.0,
    )
    with pytest.raises(PrecisionRefused, match=r"int8 flips .* no bundle was written"):
        export_bundle(options)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compiled_before")
def test_the_gate_needs_calibration_pairs(trained: Trained, tmp_path: Path) -> None:
    options = ExportOptions(
        model=str(trained.base), adapter=trained.adapter, out=tmp_path / "toy", precisions=("fp32", "int8")
    )
    with pytest.raises(InvalidInput, match="--calibration"):
        export_bundle(options)


def test_equalising_changes_no_logit(trained: Trained, encoder: Encoder, readings: list[Encoding]) -> None:
    masked_lm = merge(load_with_adapter(str(trained.base), trained.adapter))
    model = BlockedModel(PreferenceModel(masked_lm, encoder.label_ids), encoder.special.mask).eval()
    before = run_alone(torch_run(model, encoder.special.pad), readings)
    weights = copy.deepcopy(model.model.layers[1].down.weights[0])
    maxima, hooks = channel_maxima(model.model)
    run_alone(torch_run(model, encoder.special.pad), readings)
    for hook in hooks:
        hook.remove()
    equalise(model.model, maxima)
    assert not torch.allclose(weights, model.model.layers[1].down.weights[0])
    np.testing.assert_allclose(run_alone(torch_run(model, encoder.special.pad), readings), before, atol=TOLERANCE)
