"""The torch side of a cloze model, for training, export and parity checks. The only torch import of the core.

Nothing else in `tinyrm` imports this file, so that serving needs no torch.
"""

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from tinyrm.encoding import SpecialTokens
from tinyrm.errors import InvalidTemplate
from tinyrm.flops import Geometry


class LabelLogits(nn.Module):
    """A masked LM that computes only the two label logits at the mask: ids [batch, tokens] -> logits [batch, 2].

    The mask is found in the ids (there is exactly one in each row), so no index can disagree with them.
    """

    def __init__(self, masked_lm: PreTrainedModel, mask_id: int, label_ids: tuple[int, int]) -> None:
        super().__init__()
        self.masked_lm = masked_lm
        self.mask_id = mask_id
        self.register_buffer("label_ids", torch.tensor(label_ids), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        body = self.masked_lm.base_model
        hidden = body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_index = (input_ids == self.mask_id).int().argmax(dim=1)
        at_mask = hidden[torch.arange(hidden.shape[0], device=hidden.device), mask_index]
        return self._label_rows(self.masked_lm.head(at_mask))

    def _label_rows(self, features: Tensor) -> Tensor:
        decoder = self.masked_lm.decoder
        bias = None if decoder.bias is None else decoder.bias[self.label_ids]
        return nn.functional.linear(features, decoder.weight[self.label_ids], bias)


def load_masked_lm(model: str, **options: object) -> PreTrainedModel:
    """A masked LM from a folder or a hub id, in fp32."""
    loaded: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float32, **options)
    return loaded


def load_tokenizer(model: str) -> tuple[Tokenizer, SpecialTokens]:
    """The fast tokenizer of a folder or a hub id and the ids of its special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    mask, pad = tokenizer.mask_token_id, tokenizer.pad_token_id
    if None in (cls, sep, mask, pad):
        raise InvalidTemplate(f"the tokenizer of {model} lacks one of the CLS, SEP, MASK and PAD tokens")
    return tokenizer.backend_tokenizer, SpecialTokens(cls=cls, sep=sep, mask=mask, pad=pad)


def geometry_of(config: PreTrainedConfig) -> Geometry:
    """The sizes of a ModernBERT-family configuration."""
    kinds = config.layer_types
    return Geometry(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        window=config.local_attention,
        global_layers=tuple(i for i, kind in enumerate(kinds) if kind == "full_attention"),
        vocab=config.vocab_size,
    )
