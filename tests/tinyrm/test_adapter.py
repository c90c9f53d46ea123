"""Test that merging the adapter keeps the logits and does not change the tied embedding."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from export.parity import TOLERANCE
from tests.conftest import Trained
from tinyrm.errors import TiedWeightChanged
from tinyrm.modernbert.adapter import load_with_adapter, merge, plain
from tinyrm.modernbert.checkpoint import load_masked_lm


def logits(model: PreTrainedModel | PeftModel) -> Tensor:
    """Return the logits of the whole vocabulary at every position, to cover every part of the merge."""
    ids = torch.randint(5, 380, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(ids, attention_mask=torch.ones_like(ids)).logits


def test_merged_logits_equal_unmerged(trained: Trained) -> None:
    model = load_with_adapter(str(trained.base), trained.adapter)
    unmerged = logits(model)
    assert (unmerged - logits(load_with_adapter(str(trained.base), None))).abs().max() > 1, "the adapter does something"
    torch.testing.assert_close(logits(merge(model)), unmerged, atol=TOLERANCE, rtol=0)


def test_merging_keeps_the_embedding_unchanged_and_tied(trained: Trained) -> None:
    before = load_masked_lm(str(trained.base)).get_input_embeddings().weight
    merged = merge(load_with_adapter(str(trained.base), trained.adapter))
    assert merged.get_input_embeddings().weight.equal(before)
    assert merged.decoder.weight is merged.get_input_embeddings().weight


def test_a_saved_adapter_comes_back_equal(trained: Trained, tmp_path: Path) -> None:
    model = load_with_adapter(str(trained.base), trained.adapter)
    model.save_pretrained(tmp_path)
    again = load_with_adapter(str(trained.base), tmp_path)
    parts = {name: value for name, value in again.named_parameters() if "lora_" in name}
    assert len(parts) == 3 * (3 * 4 + 1), "A, B and magnitude for four linears of three layers, and the head's"
    assert all(value.equal(model.get_parameter(name)) for name, value in parts.items())
    assert logits(again).equal(logits(model))


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_on_the_tied_decoder_is_refused(trained: Trained, tmp_path: Path, use_dora: bool) -> None:
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["decoder"], use_dora=use_dora, init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(load_masked_lm(str(trained.base)), config).save_pretrained(tmp_path)
    with pytest.raises(TiedWeightChanged, match="without `decoder`"):
        merge(load_with_adapter(str(trained.base), tmp_path))


def test_without_an_adapter_there_is_nothing_to_merge(trained: Trained) -> None:
    model = load_with_adapter(str(trained.base), None)
    assert merge(model) is model is plain(model)
    assert not model.training
