"""Test that any masked LM has a plain graph with the logits of its own head, and other families have no other graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from export.graph import write_onnx
from export.parity import TOLERANCE, pad_rows, run_alone
from tests.conftest import spread
from tests.parity.test_geometries import LABELS, MASK, PAD, SPECIAL, texts
from tinyrm.engines.onnx_runtime import open_session
from tinyrm.modernbert.checkpoint import LabelLogits, read_geometry

LENGTHS = (8, 64, 65, 129, 300)
SIZES = {
    "vocab_size": 500,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 520,
}
MODELS = {
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, **SPECIAL)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES, pad_token_id=PAD)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES, pad_token_id=PAD)),
    "deberta": lambda: DebertaV2ForMaskedLM(
        DebertaV2Config(
            **SIZES, pad_token_id=PAD, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=64
        )
    ),
}


@pytest.fixture(params=["modernbert", "bert", "roberta", "deberta"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = MODELS[request.param]().eval()
    spread(made)
    with torch.no_grad():
        made.get_output_embeddings().bias.normal_()
    return made


def test_label_logits_are_the_models_own(model: PreTrainedModel) -> None:
    head = LabelLogits(model, MASK, LABELS).eval()
    for text in texts(LENGTHS):
        ids = torch.from_numpy(text.input_ids)[None]
        with torch.inference_mode():
            whole = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            expected = whole[ids == MASK][:, list(LABELS)]
            torch.testing.assert_close(head(ids, torch.ones_like(ids)), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_the_plain_graph_gives_the_same_logits(model: PreTrainedModel, tmp_path: Path) -> None:
    head = LabelLogits(model, MASK, LABELS).eval()
    write_onnx(head, tmp_path / "model.onnx", 512)
    run = pad_rows(open_session(tmp_path / "model.onnx"), PAD)

    def reference(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return head(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()

    expected = run_alone(pad_rows(reference, PAD), texts(LENGTHS))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(run_alone(run, texts(LENGTHS)), expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(run(texts(LENGTHS)), expected, atol=TOLERANCE, rtol=0)


def test_the_geometry_has_no_gate_and_no_window(model: PreTrainedModel) -> None:
    geometry = read_geometry(model.config)
    if isinstance(model, ModernBertForMaskedLM):
        assert (geometry.gated, geometry.global_layers, geometry.window) == (True, (0,), 128)
        return
    assert (geometry.gated, geometry.global_layers) == (False, (0, 1, 2))
