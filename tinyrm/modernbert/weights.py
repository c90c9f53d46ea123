"""Weights of a bundle for the torch engine: one file, without the vocabulary-sized head.

Always in the fused form, which suits a GPU; attention's scale and the embedding's norm are already folded in.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedConfig

from tinyrm.errors import InvalidBundle
from tinyrm.modernbert.model import PreferenceModel, Projection


def save_weights(model: PreferenceModel, config: PreTrainedConfig, path: Path) -> None:
    """Write the fused weights and the configuration of the model to one safetensors file."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            # The parts of a projection side by side; one that is fused already has one part.
            for kind, parts, dim in (("weights", module.weights, 1), ("biases", module.biases, 0)):
                tensors = [state.pop(f"{name}.{kind}.{i}") for i in range(len(parts))]
                if tensors:
                    state[f"{name}.{kind}.0"] = torch.cat(tensors, dim=dim).contiguous()
    metadata = {
        "format": "pt",
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "read_at": model.read_at,
    }
    save_file(state, path, metadata=metadata)


def load_weights(path: Path, *, max_tokens: int | None = None) -> PreferenceModel:
    """Load the fused model in its saved precision, for sequences of up to `max_tokens`. Raises InvalidBundle."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            config = ModernBertConfig.from_dict(json.loads(metadata["config"]))
            read_at: Any = metadata.get("read_at", "mask")  # older files were all read there
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping, it has only keys()
        # A classifier is loaded like a masked LM, of which it has all but the vocabulary-sized rows.
        config.decoder_bias = "label_bias" in state
        with torch.device("meta"):  # shapes without memory
            masked_lm = ModernBertForMaskedLM(config)
        # No file holds the rotary tables: they are computed.
        masked_lm.model.rotary_emb = type(masked_lm.model.rotary_emb)(config)
        rows = range(len(state["label_weight"]))
        model = PreferenceModel(masked_lm, rows, read_at=read_at, max_tokens=max_tokens, fused=True)
        model.load_state_dict(state, assign=True)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidBundle(
            f"{path} does not hold weights of this version: {error}; export the bundle again"
        ) from error
    model.requires_grad_(requires_grad=False)
    return model.eval()
