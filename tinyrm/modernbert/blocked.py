"""Attention in blocks, for a graph over a padded batch: a local layer costs its window, not the square of the length.

A local layer lets a token see `half_window` tokens to each side. Queries are taken in blocks of `half_window`; a block
sees at most the keys of the previous, its own and the next block, so one gather makes all windows, with indices that
depend on the length alone. The first and last windows are moved inwards instead of padded, and a
sequence shorter than a window is one window: no operator ever runs on more keys than there are.
"""

import torch
from torch import Tensor, nn
from torch.onnx import ops

from tinyrm.manifest import ReadAt
from tinyrm.modernbert.model import PreferenceModel

# Large enough that exp() of it is 0 after any softmax in fp32, small enough for bf16 and fp16.
NEVER = -1e4


def read_index(read_at: ReadAt, input_ids: Tensor, attention_mask: Tensor, mask_id: int) -> Tensor:
    """Return where each row [tokens] of a padded batch is read: int64 [batch]. The mean has no place of its own."""
    if read_at == "mask":
        return (input_ids == mask_id).int().argmax(dim=1)
    ends = attention_mask.sum(dim=1) - 1
    return ends if read_at == "last" else torch.zeros_like(ends)


class BlockedAttention:
    """Attention for ids and attention_mask [batch, tokens]. Biases, indices and rotary slices serve all layers."""

    def __init__(self, model: PreferenceModel, input_ids: Tensor, attention_mask: Tensor, mask_id: int) -> None:
        self.heads, self.hidden = model.heads, model.hidden
        self.batch, self.tokens = input_ids.shape
        self._read_at = read_index(model.read_at, input_ids, attention_mask, mask_id)
        self._is_text = attention_mask.to(model.table.dtype)[:, :, None]
        self._rotary = {local: model.rotary(local=local) for local in (False, True)}
        padding = (1.0 - attention_mask.to(model.table.dtype)) * NEVER
        self._key_bias = padding[:, None, None, :]
        # Blocks of the local layers: which queries, which keys, and the bias of pairs that are too far apart.
        tokens, block = self.tokens, model.half_window
        self._block = torch.sym_min(tokens, block)  # type: ignore[no-untyped-call]
        self._span = torch.sym_min(tokens, 3 * block)  # type: ignore[no-untyped-call]
        self._blocks = (tokens + block - 1) // block
        start = torch.arange(self._blocks, device=padding.device) * block
        queries = start[:, None] + torch.arange(self._block, device=padding.device)
        window = (start - block).clamp(min=0).clamp(max=tokens - self._span)
        keys = window[:, None] + torch.arange(self._span, device=padding.device)
        self._query_at = queries.clamp(max=tokens - 1).reshape(-1)
        self._key_at = keys.reshape(-1)
        far = (queries[:, :, None] - keys[:, None, :]).abs() > block
        seen = padding[:, self._key_at].view(self.batch, self._blocks, 1, self._span)
        bias = far.to(padding.dtype) * NEVER + seen
        self._local_bias = bias.view(self.batch * self._blocks, 1, self._block, self._span)

    def rotate(self, x: Tensor, *, heads: int, local: bool) -> Tensor:
        half = self.hidden // heads // 2
        shape = (self.batch, self.tokens, half)
        cos, sin = (table[: self.tokens].expand(shape) for table in self._rotary[local])
        return ops.rotary_embedding(x, cos, sin, num_heads=heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, local: bool) -> Tensor:
        if not local:
            # Written out: the operator takes no mask of one row for many queries.
            whole = self._key_bias.expand(self.batch, 1, self.tokens, self.tokens)
            return self._attention(q, k, v, whole)
        q = q.index_select(1, self._query_at).view(self.batch * self._blocks, self._block, self.hidden)
        k, v = (
            x.index_select(1, self._key_at).view(self.batch * self._blocks, self._span, self.hidden) for x in (k, v)
        )
        attended = self._attention(q, k, v, self._local_bias)
        return attended.view(self.batch, self._blocks * self._block, self.hidden)[:, : self.tokens]

    def at_read(self, x: Tensor) -> Tensor:
        return x[torch.arange(self.batch, device=x.device), self._read_at][:, None]

    def mean(self, x: Tensor) -> Tensor:
        return (x * self._is_text).sum(dim=1, keepdim=True) / self._is_text.sum(dim=1, keepdim=True)

    def rotate_at_read(self, q: Tensor, *, heads: int) -> Tensor:
        cos, sin = (nn.functional.embedding(self._read_at[:, None], table) for table in self._rotary[False])
        return ops.rotary_embedding(q, cos, sin, num_heads=heads)

    def attend_from_read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._attention(q, k, v, self._key_bias)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return ops.attention(q, k, v, bias, q_num_heads=self.heads, kv_num_heads=self.heads, scale=1.0)[0]


class BlockedModel(nn.Module):
    """The module that is exported: ids and attention_mask [batch, tokens] -> logits [batch, outputs]."""

    def __init__(self, model: PreferenceModel, mask_id: int) -> None:
        super().__init__()
        self.model, self.mask_id = model, mask_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids, BlockedAttention(self.model, input_ids, attention_mask, self.mask_id))
        return logits
