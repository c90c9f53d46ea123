"""Test that any difference closes the gate, and that nothing is written then."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.config import ExportOptions
from export.graph import write_onnx
from export.parity import LENGTHS, TOLERANCE, check, pad_rows, probes
from export.pipeline import export_bundle
from tests.conftest import Trained
from tinyrm.encoding import SpecialTokens
from tinyrm.engines.onnx_runtime import open_session
from tinyrm.errors import ParityFailed
from tinyrm.modernbert.blocked import BlockedModel

LOGITS = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)


def options(trained: Trained, tmp_path: Path) -> ExportOptions:
    return ExportOptions(model=str(trained.base), adapter=trained.adapter, out=tmp_path / "store" / "toy")


def test_check_reports_the_largest_difference() -> None:
    other = LOGITS + np.array([[0, 1e-5], [-5e-5, 0]], dtype=np.float32)
    parity = check("this, that", LOGITS, other)
    assert (parity.check, parity.tolerance) == ("this, that", TOLERANCE)
    assert parity.max_difference == pytest.approx(5e-5, rel=0.02)


@pytest.mark.parametrize("wrong", [LOGITS + np.float32(2e-4), LOGITS[::-1], LOGITS * np.nan, LOGITS + np.inf])
def test_check_refuses_a_difference_and_a_value_that_is_not_finite(wrong: np.ndarray) -> None:
    with pytest.raises(ParityFailed, match="this, that"):
        check("this, that", LOGITS, wrong)


def test_large_logits_may_differ_by_what_rounding_makes_of_them() -> None:
    """Rounding of fp32 grows with the number; a wrong mask changes it by far more."""
    large = LOGITS * 10
    parity = check("this, that", large, large + np.float32(4e-4))
    assert parity.tolerance == pytest.approx(40 / 5 * TOLERANCE)
    with pytest.raises(ParityFailed):
        check("this, that", large, large + np.float32(2e-3))
    for broken in (np.nan, np.inf):
        with pytest.raises(ParityFailed):
            check("this, that", LOGITS * broken, LOGITS * broken)


def test_probes_have_every_length_two_texts_and_one_mask_each(special: SpecialTokens) -> None:
    encodings = probes(special, 420, 200, markers=(7, 8, 9))
    assert [len(e) for e in encodings] == [*(n for n in LENGTHS if n <= 200), 200]
    for encoding in encodings:
        assert np.flatnonzero(encoding.input_ids == special.mask).tolist() == [len(encoding) - 2]
        half = len(encoding) // 2
        assert np.flatnonzero(encoding.input_ids == special.sep).tolist() == [half, len(encoding) - 1]
        assert not np.isin(encoding.input_ids[1:-2], [special.cls, special.pad]).any()
        for marker, place in {7: 1, 8: half - 1, 9: half + 1}.items():
            assert np.flatnonzero(encoding.input_ids == marker).tolist() == [place]


@pytest.mark.slow
def test_the_graph_of_another_model_is_refused_and_no_bundle_is_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_disturbed(model: BlockedModel, path: Path, max_tokens: int) -> None:
        weight = model.model.layers[1].gate_up.weights[0]
        with torch.no_grad():
            weight[:, 0] *= 1.05
        write_onnx(model, path, max_tokens)

    monkeypatch.setattr("export.pipeline.write_onnx", write_disturbed)
    with pytest.raises(ParityFailed, match="torch, onnx"):
        export_bundle(options(trained, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compiled_before")
def test_an_engine_that_returns_nan_is_refused_and_no_bundle_is_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> Any:
        run = open_session(path)
        return lambda *arrays: run(*arrays) * np.float32(np.nan)

    monkeypatch.setattr("export.pipeline.open_session", broken)
    with pytest.raises(ParityFailed, match="torch, onnx"):
        export_bundle(options(trained, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compiled_before")
def test_engine_that_mixes_up_batch_mates_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(path: Path) -> Any:
        run = open_session(path)
        return lambda *arrays: run(*arrays)[::-1]

    monkeypatch.setattr("export.pipeline.open_session", leaking)
    with pytest.raises(ParityFailed, match="alone, in a batch"):
        export_bundle(options(trained, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compiled_before")
def test_a_merge_that_changes_the_logits_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.pipeline.merge", lambda model: model.unload())
    with pytest.raises(ParityFailed, match="adapter unmerged, merged"):
        export_bundle(options(trained, tmp_path))
    assert not list(tmp_path.iterdir())


def test_probes_run_together_are_padded(special: SpecialTokens) -> None:
    seen: list[np.ndarray] = []

    def run(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        seen.append(attention_mask)
        return np.zeros((len(input_ids), 2), dtype=np.float32)

    pad_rows(run, special.pad)(probes(special, 420, 130))
    assert seen[0].sum(axis=1).tolist() == [*(n for n in LENGTHS if n <= 130), 130]
