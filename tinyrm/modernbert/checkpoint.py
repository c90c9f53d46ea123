"""Checkpoints of masked LMs, for training, export, evaluation and parity checks.

In the library only `tinyrm.modernbert` and the torch engines import torch; serving on a CPU does not need it.
"""

import copy
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from tinyrm.encoding import SpecialTokens
from tinyrm.errors import InvalidInput, InvalidTemplate
from tinyrm.flops import Geometry


class LabelLogits(nn.Module):
    """Any masked LM with its head at the mask only: ids [batch, tokens] -> label logits [batch, 2].

    The mask is found in the ids (there is exactly one in each row), so no index can disagree with them.
    """

    def __init__(self, masked_lm: PreTrainedModel, mask_id: int, label_ids: tuple[int, int]) -> None:
        super().__init__()
        self.masked_lm = masked_lm
        self.mask_id = mask_id
        # A masked LM is its body and its head. The head is copied, and its decoder reduced to the label rows.
        body = masked_lm.base_model
        head = copy.deepcopy(nn.Sequential(*(module for module in masked_lm.children() if module is not body)))
        decoders = [n for n, m in head.named_modules() if getattr(m, "out_features", 0) == masked_lm.config.vocab_size]
        if len(decoders) != 1:
            raise InvalidTemplate(f"{type(masked_lm).__name__} has {len(decoders)} vocabulary-sized decoders, not one")
        whole: Any = head.get_submodule(decoders[0])
        rows = nn.Linear(whole.in_features, len(label_ids), bias=whole.bias is not None)
        with torch.no_grad():
            rows.weight.copy_(whole.weight[list(label_ids)])
            if whole.bias is not None:
                rows.bias.copy_(whole.bias[list(label_ids)])
        head.set_submodule(decoders[0], rows)
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        body = self.masked_lm.base_model
        hidden = body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_index = (input_ids == self.mask_id).int().argmax(dim=1)
        features = hidden[torch.arange(hidden.shape[0], device=hidden.device), mask_index]
        logits: Tensor = self.head(features)
        return logits


def load_masked_lm(model: str, **options: object) -> PreTrainedModel:
    """Load a masked LM from a folder or a hub id, in fp32.

    Raises InvalidInput for a classifier: its missing decoder would be initialised at random.
    """
    architectures = AutoConfig.from_pretrained(model).architectures or []
    if any(name.endswith("Classification") for name in architectures):
        raise InvalidInput(f"{model} is a {architectures[0]}, not a masked LM: it cannot fill a mask")
    loaded: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float32, **options)
    return loaded


def load_tokenizer(model: str) -> tuple[Tokenizer, SpecialTokens]:
    """Load the fast tokenizer of a folder or a hub id, and the ids of its special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    mask, pad = tokenizer.mask_token_id, tokenizer.pad_token_id
    if None in (cls, sep, mask, pad):
        raise InvalidTemplate(f"the tokenizer of {model} lacks one of the CLS, SEP, MASK and PAD tokens")
    return tokenizer.backend_tokenizer, SpecialTokens(cls=cls, sep=sep, mask=mask, pad=pad)


def read_geometry(config: PreTrainedConfig) -> Geometry:
    """Return the sizes of a masked LM. One without layer types has global layers only and an MLP without a gate."""
    layers = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None)
    return Geometry(
        layers=layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        window=config.local_attention if kinds else 2 * config.max_position_embeddings,
        global_layers=tuple(i for i in range(layers) if not kinds or kinds[i] == "full_attention"),
        vocab=config.vocab_size,
        gated=kinds is not None,
    )
