"""The graph of a model that reads sets: a prompt is computed once, for any number of responses.

What belongs together is found in the ids. Linear maps run over the tokens as they are; only attention pads its rows:

* a global layer takes the prompt by itself, and all responses beside each other, each against the prompt and itself;
* a local layer takes blocks of `half_window` queries of one text, and the three blocks of keys around them, of which
  those of a response may reach into the prompt;
* masks are computed against all tokens, where only they see each other and where only they are read;
* a layer in which all tokens of the responses see each other is one matrix of all tokens.

Exact, not approximate; `tinyrm.modernbert.sets` computes the same with a mask for each pair of tokens.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.onnx import ops

from tinyrm.manifest import SetReading
from tinyrm.modernbert.blocked import NEVER
from tinyrm.modernbert.model import PreferenceModel
from tinyrm.modernbert.sets import SetModel

Own = TypeVar("Own", bound="SetAttention")


@dataclass(frozen=True, slots=True)
class SetLayout:
    """Where the texts of padded sequences are: text 0 is the prompt, and text r the response number r.

    text: of each token, int64 [sequences, tokens].
    position: of each token in its prompt and response together, int64 [sequences, tokens]; 0 for padding.
    starts, lengths: of each text, int64 [sequences, texts]; a smaller set ends in texts without tokens.
    is_token, is_mask: whether a token is no padding, and whether it is a mask, bool [sequences, tokens].
    """

    text: Tensor
    position: Tensor
    starts: Tensor
    lengths: Tensor
    is_token: Tensor
    is_mask: Tensor

    @classmethod
    def find(cls, input_ids: Tensor, attention_mask: Tensor, *, mask_id: int, sep_id: int) -> Self:
        """Find them in the ids: user text never produces a special token, so a [SEP] ends a text.

        There are more texts than tokens, so many that no ids have more.
        """
        is_token = attention_mask.bool()
        is_sep = ((input_ids == sep_id) & is_token).long()
        text = is_sep.cumsum(dim=1) - is_sep
        none = torch.zeros_like(nn.functional.pad(text, (0, 1)))
        lengths = none.scatter_add(1, text, attention_mask)
        starts = lengths.cumsum(dim=1) - lengths
        place = torch.arange(input_ids.shape[1], device=text.device).expand_as(text)
        position = torch.where(text == 0, place, place - starts.gather(1, text) + lengths[:, :1]) * attention_mask
        return cls(text, position, starts, lengths, is_token, (input_ids == mask_id) & is_token)

    def with_responses(self, most: int) -> Self:
        """Return the layout of the prompt and so many responses, which are all that have tokens."""
        texts = torch.arange(most + 1, device=self.text.device)
        starts, lengths = (of_texts.index_select(1, texts) for of_texts in (self.starts, self.lengths))
        return replace(self, text=self.text.clamp(max=most), starts=starts, lengths=lengths)

    @property
    def responses(self) -> Tensor:
        """The number of responses of each sequence, [sequences]."""
        return self.is_mask.long().sum(dim=1)

    @property
    def mask_at(self) -> Tensor:
        """Where the mask of each response is, before the [SEP] that ends it, [sequences, texts - 1]."""
        return (self.starts + self.lengths - 2)[:, 1:].clamp(min=0)


class Ranges(NamedTuple):
    """0, 1, 2, ... up to sizes of tensors that only the ids tell, int64.

    They enter the graph like inputs, so that the exporter knows the sizes as it knows those of a batch.

    responses: of the largest set.
    prompt, response: the tokens of the longest.
    blocks: of all texts of a sequence.
    """

    responses: Tensor
    prompt: Tensor
    response: Tensor
    blocks: Tensor


class FindRanges(nn.Module):
    """ids and attention_mask [batch, tokens] -> their Ranges. block: tokens of a block."""

    def __init__(self, mask_id: int, sep_id: int, block: int) -> None:
        super().__init__()
        self.mask_id, self.sep_id, self.block = mask_id, sep_id, block

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Ranges:
        layout = SetLayout.find(input_ids, attention_mask, mask_id=self.mask_id, sep_id=self.sep_id)
        blocks = count_blocks(layout.lengths, self.block).sum(dim=1)
        sizes = (layout.responses, layout.lengths[:, 0], layout.lengths[:, 1:], blocks)
        # Not int(), which would make constants of the graph of them.
        largest: list[Any] = [size.max().clamp(min=1).item() for size in sizes]
        return Ranges(*(torch.arange(size, device=input_ids.device) for size in largest))


def count_blocks(lengths: Tensor, block: int) -> Tensor:
    return (lengths + block - 1) // block


class SetAttention:
    """Attention in which a response sees the prompt and itself; `crossing` makes that of layers in which it sees more.

    Rows are [sequences, tokens, heads * head_dim].
    """

    def __init__(self, layout: SetLayout, ranges: Ranges, heads: int) -> None:
        self.layout, self.heads = layout, heads
        self.sequences, self.tokens = layout.text.shape
        starts, lengths = layout.starts, layout.lengths
        in_prompt, in_response = ranges.prompt, ranges.response
        # Not len(), which would make constants of the graph of them.
        self._prompt, self._longest = in_prompt.shape[0], in_response.shape[0]
        self._most = ranges.responses.shape[0]
        self._prompt_at = in_prompt.expand(self.sequences, self._prompt)
        queries = (starts[:, 1:, None] + in_response).clamp(max=self.tokens - 1)
        prompts = in_prompt.expand(self.sequences, self._most, self._prompt)
        self._query_at, self._key_at = queries.flatten(1), torch.cat([prompts, queries], dim=2).flatten(1)
        prompt_seen = in_prompt < lengths[:, :1]
        own_seen = in_response < lengths[:, 1:, None]
        prompts_seen = prompt_seen[:, None].expand(self.sequences, self._most, self._prompt)
        self._prompt_bias = written_out(as_bias(prompt_seen), self._prompt)
        seen = torch.cat([prompts_seen, own_seen], dim=2).flatten(0, 1)
        self._response_bias = written_out(as_bias(seen), self._longest)
        # Where each token is among the rows of `_by_text`.
        number = (layout.text - 1).clamp(min=0)
        behind_prompt = self._prompt + number * self._longest + layout.position - lengths[:, :1]
        self._back_at = torch.where((layout.text == 0) | ~layout.is_token, layout.position, behind_prompt)
        # Which tokens are of each response, and which its mask sees, [sequences, responses, tokens].
        is_token = layout.is_token[:, None, :]
        self._of_response = (layout.text[:, None, :] == 1 + ranges.responses[:, None]) & is_token
        self._seen_by_mask = self._of_response | ((layout.text == 0)[:, None, :] & is_token)
        self._reading: SetReading | None = None
        self._added: Tensor | None = None

    def crossing(self, reading: SetReading, added: Tensor) -> Self:
        """Return the attention of a layer in which responses see each other.

        added: what each head adds to the scores of others, [sequences, heads].
        """
        crossing = copy.copy(self)
        crossing._reading, crossing._added = reading, added[:, :, None, None]  # noqa: SLF001 - of this class
        return crossing

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the weighted sum of values for each token."""
        layout, reading = self.layout, self._reading
        if reading is None:
            return self._rows(self._by_text(q, k, v), self._back_at)
        if reading.others == "tokens":
            is_own = (layout.text[:, :, None] == layout.text[:, None, :]) | (layout.text == 0)[:, None, :]
            seen = is_own & layout.is_token[:, None, :]
            return self._attention(q, k, v, self._bias_of(seen, (layout.text > 0)[:, :, None]))
        of_masks = self.attend_from_read(self.at_read(q), k, v)
        by_text = self._by_text(q, k, v)
        at = torch.where(layout.is_mask, by_text.shape[1] + (layout.text - 1).clamp(min=0), self._back_at)
        return self._rows(torch.cat([by_text, of_masks], dim=1), at)

    def at_read(self, x: Tensor) -> Tensor:
        """Return the row of each response's mask: [sequences, responses, width]."""
        return self._rows(x, self.layout.mask_at)

    def attend_from_read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the weighted sum of values for each response's mask: [sequences, responses, width]."""
        return self._attention(q, k, v, self._bias_of(self._seen_by_mask))

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of each response's rows: [sequences, responses, width]."""
        belongs = self._of_response.to(x.dtype)
        return (belongs @ x) / belongs.sum(dim=2, keepdim=True).clamp(min=1)

    def _by_text(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the sums of the prompt, then of all responses: [sequences, prompt + responses * longest, width]."""
        queries, keys, values = (self._rows(x, self._prompt_at) for x in (q, k, v))
        of_prompt = self._attention(queries, keys, values, self._prompt_bias)
        shape = (self.sequences * self._most, -1, q.shape[2])
        queries = self._rows(q, self._query_at).view(shape)
        keys, values = (self._rows(x, self._key_at).view(shape) for x in (k, v))
        of_responses = self._attention(queries, keys, values, self._response_bias)
        return torch.cat([of_prompt, of_responses.view(self.sequences, -1, q.shape[2])], dim=1)

    def _bias_of(self, seen: Tensor, is_response: Tensor | None = None) -> Tensor:
        """Return the bias of queries of which each sees keys of its own, [sequences, queries, keys].

        is_response: whether a query is of a response; None if all are.
        """
        bias = as_bias(seen)
        if self._reading is None or self._added is None:
            return bias
        layout = self.layout
        keys = layout.is_mask if self._reading.others == "masks" else (layout.text > 0) & layout.is_token
        is_other = keys[:, None, :] & ~seen
        if is_response is not None:
            is_other = is_other & is_response
        return torch.where(is_other[:, None], self._added, bias)

    def _rows(self, x: Tensor, at: Tensor) -> Tensor:
        """Return the rows of x [sequences, tokens, width] at these places [sequences, rows]."""
        begins = torch.arange(self.sequences, device=x.device)[:, None] * x.shape[1]
        rows = x.flatten(0, 1).index_select(0, (begins + at).flatten())
        return rows.view(self.sequences, at.shape[1], x.shape[2])

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return ops.attention(q, k, v, bias, q_num_heads=self.heads, kv_num_heads=self.heads, scale=1.0)[0]


class LocalSetAttention(SetAttention):
    """The same for a ModernBERT, with rotary positions and local layers.

    rotary: whether a layer is local -> cosines and sines [positions, head_dim / 2].
    half_window: how many positions a token of a local layer sees to each side.
    """

    def __init__(
        self,
        layout: SetLayout,
        ranges: Ranges,
        heads: int,
        rotary: Mapping[bool, tuple[Tensor, Tensor]],
        half_window: int,
    ) -> None:
        super().__init__(layout, ranges, heads)
        self._rotary = {
            local: tuple(nn.functional.embedding(layout.position, table) for table in tables)
            for local, tables in rotary.items()
        }
        self._rotary_at_read = tuple(self._rows(table, layout.mask_at) for table in self._rotary[False])
        device, lengths, block = layout.starts.device, layout.lengths, half_window
        # Blocks of one text each, one after the other: which text it is of, and where in it the block begins.
        ends = count_blocks(lengths, block).cumsum(dim=1)
        self._blocks, number = ranges.blocks.shape[0], ranges.blocks[None]
        text = (ends[:, None, :] <= number[:, :, None]).long().sum(dim=2).clamp(max=self._most)
        first = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=1)
        begins = ((number - first.gather(1, text)) * block)[:, :, None]
        starts, lengths_of = (of_text.gather(1, text)[:, :, None] for of_text in (layout.starts, lengths))
        self._block, self._span = block, 3 * block
        own = begins + torch.arange(self._block, device=device)
        self._block_query_at = (starts + own).clamp(max=self.tokens - 1).flatten(1)
        # Before the start of a response is the end of its prompt; before that of the prompt is nothing.
        keys = begins - block + torch.arange(self._span, device=device)
        before = torch.where(text > 0, lengths[:, :1], 0)[:, :, None]
        at = torch.where(keys < 0, before + keys, starts + keys)
        self._block_key_at = at.clamp(min=0).clamp(max=self.tokens - 1).flatten(1)
        is_there = (at >= 0) & (keys < lengths_of)
        is_near = (own[:, :, :, None] - keys[:, :, None, :]).abs() <= block
        self._block_bias = as_bias((is_there[:, :, None, :] & is_near).flatten(0, 1))
        # Where each token is among the blocks.
        offset = layout.position - torch.where(layout.text > 0, lengths[:, :1], 0)
        self._from_block_at = (first.gather(1, layout.text) * block + offset) * layout.is_token.long()

    def rotate(self, x: Tensor, *, heads: int, local: bool) -> Tensor:
        return ops.rotary_embedding(x, *self._rotary[local], num_heads=heads)

    def rotate_at_read(self, q: Tensor, *, heads: int) -> Tensor:
        return ops.rotary_embedding(q, *self._rotary_at_read, num_heads=heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, local: bool = False) -> Tensor:
        if not local:
            return super().attend(q, k, v)
        blocks = (self.sequences * self._blocks, -1, q.shape[2])
        queries = self._rows(q, self._block_query_at).view(blocks)
        keys, values = (self._rows(x, self._block_key_at).view(blocks) for x in (k, v))
        attended = self._attention(queries, keys, values, self._block_bias)
        return self._rows(attended.view(self.sequences, -1, q.shape[2]), self._from_block_at)


def as_bias(seen: Tensor) -> Tensor:
    """Return 0 for what is seen [rows, ..., keys] and NEVER for the rest, [rows, 1, ..., keys]."""
    return torch.where(seen, 0.0, NEVER)[:, None]


def written_out(bias: Tensor, queries: int) -> Tensor:
    """Return a bias [rows, 1, keys] for so many queries, [rows, 1, queries, keys].

    The operator takes no mask of one row for many queries.
    """
    return bias[:, :, None, :].expand(bias.shape[0], 1, queries, bias.shape[2])


class SetGraph(nn.Module, ABC):
    """The module that is exported: ids and attention_mask [batch, tokens] -> logits [batch, most responses].

    Sequences with fewer responses than others have zeros behind their logits.

    source: its weights are reused and changed, so it must not be used afterwards.
    """

    def __init__(self, source: SetModel) -> None:
        super().__init__()
        ids = source.config.set_reading
        self.mask_id, self.sep_id = ids["mask_id"], ids["sep_id"]
        # Without a window, no block is computed.
        self.find_ranges = FindRanges(self.mask_id, self.sep_id, getattr(source.config, "sliding_window", 1))
        self.reading, self.crossing_layers, self.others = source.reading, source.crossing_layers(), source.others

    def forward(self, input_ids: Tensor, attention_mask: Tensor, ranges: Ranges | None = None) -> Tensor:
        """Return the logits. ranges: those of these ids; None finds them."""
        ranges = ranges or self.find_ranges(input_ids, attention_mask)
        layout = SetLayout.find(input_ids, attention_mask, mask_id=self.mask_id, sep_id=self.sep_id)
        layout = layout.with_responses(ranges.responses.shape[0])
        scores = self.read(input_ids, layout, ranges).view(input_ids.shape[0], -1)
        return torch.where(ranges.responses < layout.responses[:, None], scores, 0.0)

    @abstractmethod
    def read(self, input_ids: Tensor, layout: SetLayout, ranges: Ranges) -> Tensor:
        """Return the logits of all responses, one sequence after the other: [sequences * most responses, 1]."""

    def crossing(self, attention: Own) -> dict[int, Own]:
        """Return the attention of each layer in which responses see each other, by the layer's number."""
        if self.others is None:
            return {}
        added = self.others(attention.layout.responses)
        return {layer: attention.crossing(self.reading, added[:, i]) for i, layer in enumerate(self.crossing_layers)}


class ModernBertSetGraph(SetGraph):
    """Of a ModernBERT for sequences whose prompt and longest response have up to `max_tokens` tokens together."""

    def __init__(self, source: SetModel, max_tokens: int) -> None:
        super().__init__(source)
        self.model = PreferenceModel(source, None, read_at=self.reading.read_at, max_tokens=max_tokens)

    def read(self, input_ids: Tensor, layout: SetLayout, ranges: Ranges) -> Tensor:
        model = self.model
        rotary = {local: model.rotary(local=local) for local in (False, True)}
        attention = LocalSetAttention(layout, ranges, model.heads, rotary, model.half_window)
        logits: Tensor = model(input_ids, attention, self.crossing(attention))
        return logits
