"""The forward pass of BERT, RoBERTa, XLM-RoBERTa and ELECTRA, computing only what the logits need that are read.

Exact, not approximate; against the model as `transformers` runs it:

* the last layer computes keys and values for all tokens and everything else for the row that is read;
* of a masked LM's decoder the label rows only, at the mask only;
* attention is one operator, its scale folded into the query weights;
* one table holds the sums of position and segment embeddings. Their sum with the word's is normed, so no norm folds.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.onnx import ops
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    ElectraForMaskedLM,
    ElectraForSequenceClassification,
    PreTrainedModel,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
)

from tinyrm.encoding import SpecialTokens
from tinyrm.families.plain import segment_sep, token_types
from tinyrm.manifest import Head, ReadAt
from tinyrm.modernbert.blocked import NEVER, read_index
from tinyrm.modernbert.checkpoint import LabelLogits
from tinyrm.modernbert.model import Projection, activation
from tinyrm.modernbert.set_attention import Ranges, SetAttention, SetGraph, SetLayout
from tinyrm.modernbert.sets import SetModel

CLASSIFIERS = (
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
    ElectraForSequenceClassification,
)
MASKED_LMS = (BertForMaskedLM, RobertaForMaskedLM, XLMRobertaForMaskedLM, ElectraForMaskedLM)


class Embeddings(nn.Module):
    """Ids -> normed sums of word, position and segment embeddings, [batch, tokens, hidden].

    sep_id: the token after which the second segment begins; None if all tokens are of the first.
    """

    def __init__(self, body: Any, sep_id: int | None) -> None:
        super().__init__()
        source = body.embeddings
        self.sep_id = sep_id
        # The RoBERTa family numbers the tokens that are no padding, from behind the id of the padding.
        self.pad_id: int | None = getattr(source, "padding_idx", None)
        positions = source.position_embeddings.weight.detach()
        segments = source.token_type_embeddings.weight.detach()[: 1 if sep_id is None else 2]
        self.positions = len(positions)
        self.words = nn.Parameter(source.word_embeddings.weight.detach(), requires_grad=False)
        self.places = nn.Parameter((segments[:, None] + positions).flatten(0, 1), requires_grad=False)
        self.norm = source.LayerNorm
        self.project = getattr(body, "embeddings_project", nn.Identity())

    def forward(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the embeddings. positions: of each token, [batch, tokens]; None for the order of the tokens."""
        if positions is not None:
            places = positions
        elif self.pad_id is None:
            places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        else:
            is_text = (input_ids != self.pad_id).long()
            places = is_text.cumsum(dim=1) * is_text + self.pad_id
        if self.sep_id is not None:
            places = places + self.positions * token_types(input_ids, self.sep_id)
        embedded = nn.functional.embedding(input_ids, self.words) + nn.functional.embedding(places, self.places)
        states: Tensor = self.project(self.norm(embedded))
        return states


class Attention(Protocol):
    """Which tokens see each other, and which rows of each text are read. Tensors are [batch, rows, hidden]."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the weighted sum of values for each token."""

    def attend_from_read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the same for the rows that are read."""

    def at_read(self, x: Tensor) -> Tensor:
        """Return the rows that are read."""


class PaddedAttention:
    """Attention of a padded batch in which each token sees its whole text."""

    def __init__(self, heads: int, bias: Tensor, read_at: Tensor) -> None:
        self.heads, self.bias, self.read_at = heads, bias, read_at

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Written out: the operator takes no mask of one row for many queries.
        bias = self.bias.expand(k.shape[0], 1, q.shape[1], k.shape[1])
        return ops.attention(q, k, v, bias, q_num_heads=self.heads, kv_num_heads=self.heads, scale=1.0)[0]

    def attend_from_read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.attention(q, k, v, self.bias, q_num_heads=self.heads, kv_num_heads=self.heads, scale=1.0)[0]

    def at_read(self, x: Tensor) -> Tensor:
        return x[torch.arange(x.shape[0], device=x.device), self.read_at][:, None]


NO_OTHERS: Mapping[int, Attention] = MappingProxyType({})


class Layer(nn.Module):
    """One layer of the encoder; a norm follows each of its two sums."""

    def __init__(self, source: Any, scale: float) -> None:
        super().__init__()
        attention = source.attention
        with torch.no_grad():
            attention.self.query.weight *= scale
            attention.self.query.bias *= scale
        self.query, self.key, self.value = (
            Projection(linear) for linear in (attention.self.query, attention.self.key, attention.self.value)
        )
        self.out, self.attention_norm = Projection(attention.output.dense), attention.output.LayerNorm
        self.up, self.down = Projection(source.intermediate.dense), Projection(source.output.dense)
        self.mlp_norm = source.output.LayerNorm
        self.activation = source.intermediate.intermediate_act_fn

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        q, k, v = (part(x)[0] for part in (self.query, self.key, self.value))
        return self._rest(x, attention.attend(q, k, v))

    def at_read(self, x: Tensor, attention: Attention) -> Tensor:
        """Compute only the row of each text that is read: [batch, 1, hidden]."""
        row = attention.at_read(x)
        q, k, v = self.query(row)[0], self.key(x)[0], self.value(x)[0]
        return self._rest(row, attention.attend_from_read(q, k, v))

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.attention_norm(x + self.out(attended)[0])
        normed: Tensor = self.mlp_norm(x + self.down(self.activation(self.up(x)[0]))[0])
        return normed


class Encoder(nn.Module):
    """From ids to the logits that are read, in some rows of each text.

    sep_id: the token after which the second segment begins; None if all tokens are of the first.
    head: makes logits of rows [rows, hidden].
    """

    def __init__(self, source: PreTrainedModel, sep_id: int | None, head: nn.Module) -> None:
        super().__init__()
        config, body = source.config, source.base_model
        self.heads, self.head = config.num_attention_heads, head
        self.embeddings = Embeddings(body, sep_id)
        scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.layers = nn.ModuleList([Layer(layer, scale) for layer in body.encoder.layer])
        for layer in self.layers:
            layer.activation = activation(config.hidden_act)

    def forward(
        self,
        input_ids: Tensor,
        attention: Attention,
        by_layer: Mapping[int, Attention] = NO_OTHERS,
        positions: Tensor | None = None,
        mean: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return logits [rows that are read, outputs].

        by_layer: another attention for some layers, by their numbers.
        positions: as of Embeddings.
        mean: makes what is read of all rows, [batch, tokens, hidden]; None for the rows of the attention.
        """
        x = self.embeddings(input_ids, positions)
        layers: list[Any] = list(self.layers)
        *first, last = layers
        for number, layer in enumerate(first):
            x = layer(x, by_layer.get(number, attention))
        attention = by_layer.get(len(first), attention)
        read = mean(last(x, attention)) if mean else last.at_read(x, attention)
        logits: Tensor = self.head(read.flatten(0, 1))
        return logits


class BertGraph(nn.Module):
    """The module that is exported: ids and attention_mask [batch, tokens] -> logits [batch, outputs].

    source: one of CLASSIFIERS or MASKED_LMS; its weights are reused and changed, so it must not be used afterwards.
    label_ids: the rows of a masked LM's decoder that are read; None reads all outputs of a classifier.
    """

    def __init__(
        self, source: PreTrainedModel, head: Head, special: SpecialTokens, label_ids: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.mask_id = special.mask
        self.read_at: ReadAt = "first" if label_ids is None else "mask"
        # Before the body changes: a masked LM's decoder is its table of words.
        top = classifier_head(source) if label_ids is None else LabelLogits(source, special.mask, label_ids).head
        self.encoder = Encoder(source, segment_sep(source, head, special), top)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        bias = ((1.0 - attention_mask.float()) * NEVER)[:, None, None, :]
        read_at = read_index(self.read_at, input_ids, attention_mask, self.mask_id)
        return self.encoder(input_ids, PaddedAttention(self.encoder.heads, bias, read_at))


class BertSetGraph(SetGraph):
    """Of a BERT. As in training, the prompt is the first kind of segment and each response the second."""

    def __init__(self, source: SetModel) -> None:
        super().__init__(source)
        sep_id = self.sep_id if source.config.type_vocab_size > 1 else None
        self.encoder = Encoder(source, sep_id, classifier_head(source))

    def read(self, input_ids: Tensor, layout: SetLayout, ranges: Ranges) -> Tensor:
        attention = SetAttention(layout, ranges, self.encoder.heads)
        mean = attention.mean if self.reading.read_at == "mean" else None
        logits: Tensor = self.encoder(input_ids, attention, self.crossing(attention), layout.position, mean)
        return logits


class FirstRow(nn.Module):
    """Gives rows [batch, width] to a module that reads the first of [batch, tokens, width]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        read: Tensor = self.module(x[:, None])
        return read


def classifier_head(classifier: PreTrainedModel) -> nn.Module:
    """Return the head that makes logits of a text's first row: [batch, hidden] -> [batch, outputs]."""
    if isinstance(classifier, BertForSequenceClassification):
        return nn.Sequential(FirstRow(classifier.bert.pooler), classifier.classifier)
    return FirstRow(classifier.classifier)
