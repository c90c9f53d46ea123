"""Classifiers on the body of a masked LM: the heads that training makes beside the cloze, and how they are loaded."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import classifier_of, load_checked, read_config
from tinyrm.modernbert.files import checkpoint_folder, input_errors
from tinyrm.spec import HeadKind


def load_head(head: HeadKind, model: str, *, revision: str | None = None, new_head: bool = False) -> PreTrainedModel:
    """Return the body of a masked LM with a classifier, in fp32; head.dense and head.norm are the masked LM's own.

    revision, new_head: as of `load_masked_lm`.

    Raises InvalidInput if the model family cannot pool as this head needs, or weights do not fit.
    """
    folder = checkpoint_folder(model, revision)
    saved = read_config(model, folder)
    masked_lm: Collection[str] = ()
    if classifier_of(saved) is None:
        # Its names without its memory.
        with input_errors(f"{model} has no masked LM to take a head from"), torch.device("meta"):
            masked_lm = AutoModelForMaskedLM.from_config(saved).state_dict().keys()
    return load_checked(
        auto_class(head), model, folder, masked_lm=masked_lm, new_head=new_head, config=head_config(head, saved)
    )


def empty_head(head: HeadKind, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the same model with shapes and no weights."""
    with torch.device("meta"):
        model: PreTrainedModel = auto_class(head).from_config(head_config(head, config))
    return model


def head_config(head: HeadKind, config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of a head: `pair-*` has two logits, `pointwise` one, `tokens` one at every token."""
    config = copy.deepcopy(config)
    config.num_labels = 2 if head in ("pair-cls", "pair-mean") else 1
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean" if head == "pair-mean" else "cls"
    elif head == "pair-mean":
        raise InvalidInput(f"{config.model_type} models pool the first token only: head: pair-mean needs a ModernBERT")
    return config


def auto_class(head: HeadKind) -> Any:
    return AutoModelForTokenClassification if head == "tokens" else AutoModelForSequenceClassification
