"""Which parameters learn: all above the frozen layers, or DoRA adapters there."""

import re
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tinyrm.errors import InvalidInput
from training.recipe import Dora

# A masked LM has none of these, so they start from new weights.
NEW_MODULES = ("classifier", "others")


def freeze_lowest(model: PreTrainedModel, layers: int, *, embeddings: bool = True) -> None:
    """Freeze every tensor of the lowest `layers` layers and, by default, the embeddings; 0 freezes nothing.

    The decoder is tied to the embeddings and freezes with them; its bias and the head continue to learn.
    """
    if not layers:
        return
    body, all_layers = model.base_model, encoder_layers(model)
    refuse_too_many(layers, len(all_layers))
    for module in (*all_layers[:layers], *([body.embeddings] if embeddings else [])):
        module.requires_grad_(False)


def set_attention_dropout(model: PreTrainedModel, rate: float) -> None:
    """Set the dropout of attention weights in every layer, as ModernBERT and the BERT family name it."""
    for layer in encoder_layers(model):
        if hasattr(layer, "attn"):
            layer.attn.attention_dropout = rate
        else:
            layer.attention.self.dropout.p = rate


def encoder_layers(model: PreTrainedModel) -> Any:
    """Return the layers of a model's body, the lowest first, as ModernBERT and the BERT family name them."""
    body: Any = model.base_model
    return body.layers if hasattr(body, "layers") else body.encoder.layer


def add_dora(model: PreTrainedModel, dora: Dora, frozen_layers: int) -> PeftModel:
    """Add DoRA (arXiv 2402.09353) to the linears of the layers from `frozen_layers` up, and to head.dense.

    New modules, a classifier and what weighs other responses, learn without an adapter and are saved with it. The
    decoder gets none: it is tied to the embeddings, and merging would change the input side too.
    """
    config = LoraConfig(
        r=dora.rank,
        lora_alpha=dora.alpha,
        lora_dropout=dora.dropout,
        use_dora=dora.magnitude,
        modules_to_save=[name for name, _ in model.named_children() if name in NEW_MODULES] or None,
        target_modules=dora_targets(len(encoder_layers(model)), frozen_layers),
    )
    return get_peft_model(model, config)


def dora_targets(layers: int, frozen_layers: int) -> str:
    """Return a pattern of module names of ModernBERT, for which peft has no default, and of the BERT family."""
    refuse_too_many(frozen_layers, layers)
    numbers = "|".join(str(i) for i in range(frozen_layers, layers))
    modernbert = rf"model\.layers\.(?:{numbers})\.(?:attn\.Wqkv|attn\.Wo|mlp\.Wi|mlp\.Wo)"
    bert = rf"\w+\.encoder\.layer\.(?:{numbers})\.(?:attention\.self\.(?:query|key|value)|(?:\w+\.)*dense)"
    return rf"{modernbert}|{bert}|{re.escape('head.dense')}"


def refuse_too_many(frozen: int, layers: int) -> None:
    if frozen >= layers:
        raise InvalidInput(f"frozen_layers={frozen} leaves nothing to learn in a model of {layers} layers")
