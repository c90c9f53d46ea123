"""Sizes of the published models, so that a run can be planned without a network. On torch's meta device: no weights.

ModernBERT: arXiv 2412.13663, table 4. Ettin: arXiv 2507.11412, table 1; the same architecture and vocabulary size.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, ModernBertConfig, PreTrainedConfig, PreTrainedModel

from tinyrm.errors import InvalidInput
from training.recipe import NewModel

VOCABULARY = 50_368


def published_models() -> dict[str, NewModel]:
    """Hub id -> geometry."""
    return {
        "answerdotai/ModernBERT-base": _size(22, 768, 1152, 12),
        "answerdotai/ModernBERT-large": _size(28, 1024, 2624, 16),
        "jhu-clsp/ettin-encoder-17m": _size(7, 256, 384, 4),
        "jhu-clsp/ettin-encoder-32m": _size(10, 384, 576, 6),
        "jhu-clsp/ettin-encoder-68m": _size(19, 512, 768, 8),
        "jhu-clsp/ettin-encoder-150m": _size(22, 768, 1152, 12),
        "jhu-clsp/ettin-encoder-400m": _size(28, 1024, 2624, 16),
        "jhu-clsp/ettin-encoder-1b": _size(28, 1792, 3840, 28),
    }


def planned_config(model: str) -> PreTrainedConfig:
    """Configuration of a published model by its id, or of a folder. Raises InvalidInput for anything else."""
    known = published_models()
    if model in known:
        return ModernBertConfig(vocab_size=VOCABULARY, **known[model].model_dump())
    if not (Path(model) / "config.json").is_file():
        raise InvalidInput(
            f"the sizes of {model!r} are not known: it is no folder with a config.json (has the run that makes it "
            f"ended?) and none of {', '.join(known)}"
        )
    return AutoConfig.from_pretrained(model)


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The masked LM of a configuration with shapes and no weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForMaskedLM.from_config(config)
    return model


def _size(layers: int, hidden: int, intermediate: int, heads: int) -> NewModel:
    return NewModel(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=heads
    )
