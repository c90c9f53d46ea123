"""Adapters, loaded or merged into the weights that they adapt: for export and for merging specialists."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from tinyrm.errors import TiedWeightChanged
from tinyrm.modernbert.checkpoint import load_masked_lm


def load_with_adapter(model: str, adapter: Path | None) -> PreTrainedModel | PeftModel:
    """Load the masked LM in evaluation mode, its adapter active but not merged."""
    masked_lm = load_masked_lm(model)
    if adapter is None:
        return masked_lm.eval()
    return PeftModel.from_pretrained(masked_lm, str(adapter)).eval()


def plain(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the masked LM itself; an unmerged adapter stays active in its layers."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def merge(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Merge the adapter; each DoRA weight becomes m * (W + sBA) / ||W + sBA||. Changes `model`.

    Raises TiedWeightChanged if that would change the embedding.
    """
    if not isinstance(model, PeftModel):
        return model
    before = plain(model).get_input_embeddings().weight.detach().clone()
    merged: PreTrainedModel = model.merge_and_unload()
    if not merged.get_input_embeddings().weight.equal(before):
        raise TiedWeightChanged(
            "the adapter changes the token embedding through the tied decoder; train it without `decoder`"
        )
    return merged
