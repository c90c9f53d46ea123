"""Adapters, loaded or merged into the weights that they adapt: for export, evaluation and merging specialists."""

import re
import warnings
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from transformers import PreTrainedModel

from tinyrm.errors import InvalidInput, TiedWeightChanged
from tinyrm.manifest import SetReading
from tinyrm.modernbert.checkpoint import PREFIXES, classifier_of, load_masked_lm, load_tokenizer, read_config
from tinyrm.modernbert.files import checkpoint_folder, input_errors, listed
from tinyrm.modernbert.heads import load_head
from tinyrm.modernbert.sets import set_config
from tinyrm.spec import HeadKind, read_run


def load_with_adapter(
    model: str, adapter: Path | None, *, revision: str | None = None, head: HeadKind = "cloze"
) -> PreTrainedModel | PeftModel:
    """Load a masked LM or a classifier in evaluation mode, its adapter active but not merged.

    head: how it was trained to read; all but `cloze` are classifiers.

    Raises InvalidInput, and TiedWeightChanged for an adapter of the embedding or the decoder.
    """
    if head == "cloze":
        loaded = load_masked_lm(model, revision=revision)
    else:
        refuse_without_head(head, model, adapter, revision)
        recipe = read_run(adapter).get("recipe", {}) if adapter else {}
        sets = None
        if adapter and recipe.get("sets"):
            # The base of the adapter does not know what its responses see.
            _, special = load_tokenizer(str(adapter))
            sets = set_config(SetReading(**recipe["sets"]), special)
        loaded = load_head(head, model, revision=revision, new_head=bool(recipe.get("new_head")), sets=sets)
    return (apply_adapter(loaded, adapter) if adapter else loaded).eval()


def refuse_without_head(head: HeadKind, model: str, adapter: Path | None, revision: str | None) -> None:
    """Raise InvalidInput if no file has the weights of a classifier, which would be drawn at random.

    A classifier that training put on a masked LM is saved with the adapter.
    """
    with input_errors(f"the adapter in {adapter} cannot be loaded"):
        saved = PeftConfig.from_pretrained(str(adapter)).modules_to_save if adapter else None
    if not saved and classifier_of(read_config(model, checkpoint_folder(model, revision))) is None:
        where = f"neither {model} nor {adapter} has" if adapter else f"{model} has not"
        raise InvalidInput(f"{where} the classifier of a model that was trained with head: {head}")


def apply_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Return the model with its adapter. What peft only warns of is refused.

    Raises InvalidInput, which names the weights that are missing or belong to nothing; TiedWeightChanged.
    """
    with input_errors(f"the adapter in {folder} cannot be loaded"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # they are the text of the error below
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise InvalidInput(f"{folder} is an adapter of the kind {config.peft_type.value}, which cannot be merged")
        adapted: PeftModel = PeftModel.from_pretrained(model, str(folder))
        # Versions differ in whether a DoRA's magnitudes are a module's weight or the weight itself.
        there, wanted = (
            {re.sub(r"(lora_magnitude_vector)\.weight$", r"\1", key) for key in keys}
            for keys in (
                load_peft_weights(str(folder)),
                get_peft_model_state_dict(adapted, save_embedding_layers=False),
            )
        )
    missing, unknown = sorted(wanted - there), sorted(there - wanted)
    parts = ((missing, "of its weights are missing"), (unknown, "belong to nothing"))
    faults = [f"{len(keys)} {what}: {listed(keys)}" for keys, what in parts if keys]
    if faults:
        hint = "".join(text for prefix, text in PREFIXES.items() if any(f".{prefix}" in f".{key}" for key in unknown))
        raise InvalidInput(f"the adapter in {folder} does not fit its base: {'; '.join(faults)}{hint}")
    refuse_tied(adapted, folder)
    return adapted


def refuse_tied(adapted: PeftModel, folder: Path) -> None:
    """Raise TiedWeightChanged for an adapter of the embedding or the decoder, which are one matrix.

    A whole embedding that was learnt beside the adapter replaces that matrix, and is no such adapter.
    """
    masked_lm = adapted.get_base_model()
    decoder, embedding = masked_lm.get_output_embeddings(), masked_lm.get_input_embeddings()
    changes = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    changed = [
        name
        for name, module in masked_lm.named_modules()
        if (module is decoder and isinstance(module, changes))
        or (module is embedding and isinstance(module, changes) and not isinstance(module, ModulesToSaveWrapper))
    ]
    if changed:
        raise TiedWeightChanged(
            f"the adapter in {folder} changes {' and '.join(changed)}, but decoder and token embedding are one matrix; "
            "train it without `decoder`, the embedding or single tokens among its modules"
        )


def plain(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model itself; an unmerged adapter stays active in its layers."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def merge(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Merge the adapter; each DoRA weight becomes m * (W + sBA) / ||W + sBA||. Changes `model`.

    Raises InvalidInput if peft cannot merge it, and TiedWeightChanged if that would change the embedding.
    """
    if not isinstance(model, PeftModel):
        return model
    before = plain(model).get_input_embeddings().weight.detach().clone()
    with input_errors("the adapter cannot be merged"):
        merged: PreTrainedModel = model.merge_and_unload()
    if not merged.get_input_embeddings().weight.equal(before):
        raise TiedWeightChanged(
            "the adapter changes the token embedding through the tied decoder; train it without `decoder`"
        )
    return merged
