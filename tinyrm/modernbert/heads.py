"""Classifiers on the body of a masked LM: the heads that training makes beside the cloze, and how they are loaded."""

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from tinyrm.encoding import SpecialTokens
from tinyrm.errors import InvalidInput
from tinyrm.manifest import SetReading
from tinyrm.modernbert.checkpoint import classifier_of, load_checked, read_config
from tinyrm.modernbert.files import checkpoint_folder, input_errors
from tinyrm.modernbert.sets import set_class, set_config
from tinyrm.spec import HeadKind


def load_head(
    head: HeadKind,
    model: str,
    *,
    revision: str | None = None,
    new_head: bool = False,
    sets: Mapping[str, Any] | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """Return the body of a masked LM with a classifier, in fp32; head.dense and head.norm are the masked LM's own.

    revision, new_head, attention: as of `load_masked_lm`.
    sets: what `tinyrm.modernbert.sets.set_config` returns, for a model that learns to read sets; one that has learnt it
        knows.

    Raises InvalidInput if the model family cannot pool as this head needs, or weights do not fit.
    """
    folder = checkpoint_folder(model, revision)
    saved = read_config(model, folder)
    masked_lm: Collection[str] = ()
    if classifier_of(saved) is None:
        # Its names without its memory.
        with input_errors(f"{model} has no masked LM to take a head from"), torch.device("meta"):
            masked_lm = AutoModelForMaskedLM.from_config(saved).state_dict().keys()
    config = head_config(head, saved)
    if head == "set" and not hasattr(config, "set_reading"):
        if sets is None:
            raise InvalidInput(f"{model} has not learnt to read sets")
        config.set_reading = dict(sets)
    kind = set_class(saved) if head == "set" else auto_class(head)
    options = {} if head == "set" else {"attn_implementation": attention}  # a model of sets has its own
    return load_checked(kind, model, folder, masked_lm=masked_lm, new_head=new_head, config=config, **options)


def empty_head(head: HeadKind, config: PreTrainedConfig, sets: SetReading | None = None) -> PreTrainedModel:
    """Return the same model with shapes and no weights. sets: what responses see of each other, for head `set`."""
    own = head_config(head, config)
    if sets is not None:
        own.set_reading = set_config(sets, SpecialTokens(cls=0, sep=0, mask=0, pad=0))
    with torch.device("meta"):
        model: PreTrainedModel = set_class(own)(own) if head == "set" else auto_class(head).from_config(own)
    return model


def head_config(head: HeadKind, config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of a head: `pair-*` has two logits, `pointwise` one, `set` one at every mask, `tokens`
    one at every token."""
    config = copy.deepcopy(config)
    config.num_labels = 2 if head in ("pair-cls", "pair-mean") else 1
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean" if head == "pair-mean" else "cls"
    elif head == "pair-mean":
        raise InvalidInput(f"{config.model_type} models pool the first token only: head: pair-mean needs a ModernBERT")
    return config


def auto_class(head: HeadKind) -> Any:
    return AutoModelForTokenClassification if head == "tokens" else AutoModelForSequenceClassification
