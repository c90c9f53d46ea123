"""Test that heads other than the cloze are exported with the optimised graph, and with all that it allows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.config import ExportOptions
from export.parity import TOLERANCE, probes, run_alone, torch_run
from export.pipeline import export_bundle
from tests.support.checkpoints import PUBLISHED
from tinyrm.bundle import Bundle
from tinyrm.encoding import Encoding
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.engines.torch_gpu import open_torch_cuda
from tinyrm.errors import InvalidInput
from tinyrm.families.plain import plain_module
from tinyrm.modernbert.heads import load_head


@pytest.mark.parametrize(
    "fixture", ["response_bundle_folder", pytest.param("pair_cls_bundle_folder", marks=pytest.mark.slow)]
)
def test_the_optimised_graph_is_written_and_passes_every_check(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(fixture))
    assert bundle.manifest.graph == "optimised"
    assert [parity.check for parity in bundle.manifest.parity] == [
        "adapter unmerged, merged",
        "torch, onnx",
        "alone, in a batch",
    ]
    run = open_engine(bundle, EngineOptions("onnxruntime-cpu")).run
    assert run(inputs(bundle)).shape == (len(inputs(bundle)), bundle.manifest.head.outputs)


def inputs(bundle: Bundle) -> list[Encoding]:
    return probes(bundle.manifest.special_tokens, bundle.manifest.geometry.vocab, bundle.manifest.spec.max_tokens)


@pytest.mark.slow
def test_scores_in_every_precision_and_on_the_torch_engine(response_bundle_folder: Path, tmp_path: Path) -> None:
    """Export a trained scorer with everything. Its random scores are close, so the gate is wide open."""
    trained, pairs = response_bundle_folder.parent / "trained", tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i}?", "chosen": "yes " * (1 + i % 7), "rejected": "no " * (1 + i % 5)} for i in range(40)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    export_bundle(
        ExportOptions(
            model=str(trained),
            out=tmp_path / "toy",
            calibration=pairs,
            precisions=("int8", "bf16"),
            max_weighted_flips=1.0,
            weights=True,
        )
    )
    bundle = Bundle.open(tmp_path / "toy")
    manifest, texts = bundle.manifest, inputs(bundle)
    expected = run_alone(
        torch_run(
            plain_module(load_head("pointwise", str(trained)), manifest.head, manifest.special_tokens, None),
            manifest.special_tokens.pad,
        ),
        texts,
    )
    assert np.ptp(expected) > 0.1
    packed = open_torch_cuda(bundle.weights_file(), manifest, "fp32", device="cpu")
    np.testing.assert_allclose(packed.run(texts), expected, atol=TOLERANCE, rtol=0)
    rounded = open_engine(bundle, EngineOptions("onnxruntime-cpu", precision="int8")).run
    alone = run_alone(rounded, texts)
    assert np.array_equal(rounded(texts), alone)
    assert 0 < np.abs(alone - expected).max() < np.ptp(expected)
    assert {name: gate.pairs for name, gate in manifest.gates.items()} == {"int8": 30, "bf16": 30}


@pytest.mark.parametrize(
    ("kind", "option", "reason"),
    [
        ("modular", {"weights": True}, "has layers of its own before its score, so leave out --weights"),
        ("bert", {"weights": True}, "is a bert: --weights and bf16 are for the ModernBERT family"),
        ("deberta", {"graph": "optimised"}, "is a deberta-v2 and has no optimised graph; use --graph plain"),
    ],
)
def test_what_a_family_does_not_have_is_refused_before_any_work(
    kind: str, option: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.pipeline.compile_checked", None)
    model = PUBLISHED[kind].write(tmp_path / kind)
    with pytest.raises(InvalidInput, match=reason):
        export_bundle(ExportOptions(model=str(model), out=tmp_path / "out", **option))
