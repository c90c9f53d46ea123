"""Texts side by side without padding, and how they fill the fixed shapes that a GPU runs. No torch here."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A bucket has places for texts of at least this length on average; more and shorter ones take a larger bucket.
TOKENS_PER_TEXT = 64
# Any id of the vocabulary would do: nothing reads what is computed from it.
FILL_ID = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """The tokens of all texts in one row.

    ids, positions: int64 [tokens]. cu_seqlens: int32 [texts + 1], where each text begins and the last one ends.
    mask_rows: int64 [texts], which of the tokens is each text's mask. max_tokens: the longest text.
    """

    ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    positions: NDArray[np.int64]
    mask_rows: NDArray[np.int64]
    max_tokens: int

    def flat(self) -> NDArray[np.int64]:
        """ids, positions, mask rows and boundaries in one array, so that one copy takes them to a device."""
        return np.concatenate([self.ids, self.positions, self.mask_rows, self.cu_seqlens], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One fixed shape. max_texts: of real texts. texts: with those that fill it. longest: no text is longer."""

    tokens: int
    max_texts: int
    texts: int
    longest: int

    @classmethod
    def of(cls, tokens: int, max_tokens: int) -> "Bucket":
        """For texts of up to `max_tokens`; what fills it always finds places enough to be no longer than they are."""
        longest = min(tokens, max_tokens)
        max_texts = max(1, tokens // TOKENS_PER_TEXT)
        return cls(tokens, max_texts, max_texts + tokens // longest + 1, longest)

    @property
    def flat_size(self) -> int:
        """Numbers in `Packed.flat` of a filled bucket."""
        return 2 * self.tokens + 2 * self.texts + 1

    def takes(self, tokens: int, texts: int) -> bool:
        return tokens <= self.tokens and texts <= self.max_texts


def pack_rows(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], mask_id: int) -> Packed:
    """Right-padded rows [batch, tokens] without their padding. Raises ValueError for anything else.

    A row without a mask, as a warm-up sends it, is read at its first token.
    """
    _refuse_other_than_rows(input_ids, attention_mask)
    lengths = attention_mask.sum(axis=1)
    real = np.arange(input_ids.shape[1]) < lengths[:, None]
    if not np.array_equal(real, attention_mask) or not lengths.all():
        raise ValueError("each row of the attention mask has to be ones, at least one, and then zeros")
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask_at = np.argmax((input_ids == mask_id) & real, axis=1)
    longest = int(lengths.max(initial=0))
    return Packed(input_ids[real], cu_seqlens, np.nonzero(real)[1], cu_seqlens[:-1] + mask_at, longest)


def fill(packed: Packed, bucket: Bucket) -> Packed:
    """As many tokens and texts as the bucket has. What fills it is spread over all places left.

    Attention costs the square of a text's length, so many short texts are cheaper than one long one; a place for which
    no token is left is a text of length 0.
    """
    used, texts = len(packed.ids), len(packed.mask_rows)
    missing = bucket.tokens - used
    ends = np.linspace(used, bucket.tokens, bucket.texts - texts + 1).astype(np.int32)[1:]
    return Packed(
        ids=np.pad(packed.ids, (0, missing), constant_values=FILL_ID),
        cu_seqlens=np.concatenate([packed.cu_seqlens, ends]),
        positions=np.pad(packed.positions, (0, missing)),
        mask_rows=np.pad(packed.mask_rows, (0, bucket.texts - texts)),
        max_tokens=bucket.longest,
    )


def _refuse_other_than_rows(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> None:
    arrays = (np.asarray(input_ids), np.asarray(attention_mask))
    if any(a.ndim != 2 or a.dtype.kind != "i" for a in arrays) or arrays[0].shape != arrays[1].shape:
        raise ValueError("ids and mask have to be two arrays of integers [batch, tokens] of one shape")
