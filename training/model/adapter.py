"""Which parameters learn: all above the frozen layers, or DoRA adapters there."""

import re

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tinyrm.errors import InvalidInput
from training.recipe import Dora

NEW_MODULE = "classifier"  # a masked LM has none, so it starts from random weights


def freeze_lowest(model: PreTrainedModel, layers: int, *, embeddings: bool = True) -> None:
    """Freeze every tensor of the lowest `layers` layers and, by default, the embeddings; 0 freezes nothing.

    The decoder is tied to the embeddings and freezes with them; its bias and the head continue to learn.
    """
    if not layers:
        return
    body = model.base_model
    refuse_too_many(layers, len(body.layers))
    for module in (*body.layers[:layers], *([body.embeddings] if embeddings else [])):
        module.requires_grad_(False)


def add_dora(model: PreTrainedModel, dora: Dora, frozen_layers: int) -> PeftModel:
    """Add DoRA (arXiv 2402.09353) to Wqkv, Wo and Wi of the layers from `frozen_layers` up, and to head.dense.

    A new classifier learns without an adapter and is saved with it. The decoder gets none: it is tied to the
    embeddings, and merging would change the input side too.
    """
    config = LoraConfig(
        r=dora.rank,
        lora_alpha=dora.alpha,
        lora_dropout=dora.dropout,
        use_dora=dora.magnitude,
        modules_to_save=[name for name, _ in model.named_children() if name == NEW_MODULE] or None,
        target_modules=dora_targets(len(model.base_model.layers), frozen_layers),
    )
    return get_peft_model(model, config)


def dora_targets(layers: int, frozen_layers: int) -> str:
    """Return a pattern of module names, because peft has no default for ModernBERT."""
    refuse_too_many(frozen_layers, layers)
    numbers = "|".join(str(i) for i in range(frozen_layers, layers))
    return rf"model\.layers\.(?:{numbers})\.(?:attn\.Wqkv|attn\.Wo|mlp\.Wi|mlp\.Wo)|{re.escape('head.dense')}"


def refuse_too_many(frozen: int, layers: int) -> None:
    if frozen >= layers:
        raise InvalidInput(f"frozen_layers={frozen} leaves nothing to learn in a model of {layers} layers")
