"""Attention over packed tokens, for a GPU: all sequences of a batch side by side, without padding or masks in memory.

The layers see one row [1, tokens, width]; the kernel receives the boundaries that keep the sequences apart. A sequence
without tokens is allowed: it fills a place where a captured graph needs a fixed number of sequences.
"""

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from tinyrm.modernbert.model import PreferenceModel


class Bounds(NamedTuple):
    """Where the queries and keys of each sequence begin and the last ones end, int32 [sequences + 1]; the longest."""

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int


# Not in torch before 2.12, where the operator below it has windows and never splits.
HAS_WINDOWS = {"window_size", "num_splits"} <= inspect.signature(varlen_attn).parameters.keys()

# (q, k, v, bounds, half_window | None) -> o; q, k, v, o: [tokens, heads, head_dim]. Scores are not scaled: the scale is
# in the query weights. Tokens up to half_window apart see each other. A sequence without keys gives zeros.
Kernel = Callable[[Tensor, Tensor, Tensor, Bounds, int | None], Tensor]


class PackedAttention:
    """Attention for ids [1, tokens] on one device.

    cu_seqlens: int32 [sequences + 1].
    positions: int64 [tokens].
    read_rows: int64 [sequences], the index of the token of each sequence that is read.
    max_tokens: upper bound of the length of a sequence.
    """

    def __init__(
        self,
        model: PreferenceModel,
        *,
        cu_seqlens: Tensor,
        positions: Tensor,
        read_rows: Tensor,
        max_tokens: int,
        kernel: Kernel,
    ) -> None:
        self.heads, self.half_window = model.heads, model.half_window
        one_each = torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
        self._all = Bounds(cu_seqlens, cu_seqlens, max_tokens, max_tokens)
        self._reads = Bounds(one_each, cu_seqlens, 1, max_tokens)
        self._read_rows = read_rows
        self._kernel = kernel
        # [tokens, 1, head_dim / 2]: looked up once for all layers, alike for all heads.
        self._turns = {local: _look_up(model.rotary(local=local), positions) for local in (False, True)}
        self._turns_at_read = _look_up(model.rotary(local=False), positions[read_rows][:, None])

    def rotate(self, x: Tensor, *, heads: int, local: bool) -> Tensor:
        return _rotate(x, heads, *self._turns[local])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, local: bool) -> Tensor:
        o = self._kernel(*self._by_head(q, k, v), self._all, self.half_window if local else None)
        return o.reshape(q.shape)

    def at_read(self, x: Tensor) -> Tensor:
        return x[0, self._read_rows][:, None]

    def rotate_at_read(self, q: Tensor, *, heads: int) -> Tensor:
        return _rotate(q, heads, *self._turns_at_read)

    def attend_from_read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._kernel(*self._by_head(q, k, v), self._reads, None).reshape(q.shape)

    def mean(self, x: Tensor) -> Tensor:
        # Queries of zeros weigh all keys alike. A sum by index would depend on the order of a GPU's threads.
        nothing = torch.zeros(len(self._read_rows), 1, x.shape[-1], dtype=x.dtype, device=x.device)
        return self.attend_from_read(nothing, x, x)

    def _by_head(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reshape [rows, tokens, width] to [rows * tokens, heads, head_dim]."""
        shape = (-1, self.heads, q.shape[-1] // self.heads)
        return q.reshape(shape), k.reshape(shape), v.reshape(shape)


def varlen_kernel(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, half_window: int | None) -> Tensor:
    """Run the FlashAttention of torch: CUDA, bf16 or fp16."""
    reach = -1 if half_window is None else half_window
    if not HAS_WINDOWS:
        flash: Any = torch.ops.aten._flash_attention_forward  # noqa: SLF001  # what varlen_attn calls
        window = {"window_size_left": reach, "window_size_right": reach}
        old: Tensor = flash(q, k, v, *bounds, 0.0, False, False, scale=1.0, **window)[0]
        return old
    # One split: the order of summation, and so the last digit, does not depend on batch-mates.
    o = varlen_attn(q, k, v, *bounds, scale=1.0, window_size=(reach, reach), num_splits=1)
    assert isinstance(o, Tensor)  # noqa: S101 - a pair only if the sums are requested
    return o


def reference_kernel(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, half_window: int | None) -> Tensor:
    """Run sequence by sequence in plain operators: any device and precision, slow."""
    o = torch.zeros_like(q)
    spans = (pairwise(cu.tolist()) for cu in (bounds.cu_q, bounds.cu_k))
    for (q_from, q_to), (k_from, k_to) in zip(*spans, strict=True):
        if q_from == q_to or k_from == k_to:
            continue
        one, two, three = (x.transpose(0, 1) for x in (q[q_from:q_to], k[k_from:k_to], v[k_from:k_to]))
        seen = None
        if half_window is not None:
            queries, keys = torch.arange(q_to - q_from, device=q.device), torch.arange(k_to - k_from, device=q.device)
            seen = (queries[:, None] - keys).abs() <= half_window
        attended = nn.functional.scaled_dot_product_attention(one, two, three, attn_mask=seen, scale=1.0)
        o[q_from:q_to] = attended.transpose(0, 1)
    return o


def _look_up(tables: tuple[Tensor, Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [*positions, 1, head_dim / 2]."""
    cos, sin = tables
    return cos[positions][..., None, :], sin[positions][..., None, :]


def _rotate(x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [rows, tokens, heads * head_dim] in fp32 and return it in its own precision, as transformers does."""
    one, two = x.reshape(*x.shape[:-1], heads, -1).float().chunk(2, dim=-1)
    turned = torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)
