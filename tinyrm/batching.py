"""Encodings -> padded arrays, and what a batch costs in tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding


@dataclass(frozen=True, slots=True)
class Batch:
    """int64 arrays [batch, tokens]; padding stands on the right, its attention_mask is 0."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]

    @property
    def real_tokens(self) -> int:
        return int(self.attention_mask.sum())

    @property
    def padded_tokens(self) -> int:
        """Tokens the engine computes, padding included."""
        return self.input_ids.size


def collate(encodings: Sequence[Encoding], pad_id: int) -> Batch:
    """Right-pad to the longest encoding."""
    shape = (len(encodings), max(len(e) for e in encodings))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, encoding in enumerate(encodings):
        input_ids[row, : len(encoding)] = encoding.input_ids
        attention_mask[row, : len(encoding)] = 1
    return Batch(input_ids, attention_mask)


def padded_cost(lengths: Sequence[int], *, pads: bool = True, length_multiple: int = 1) -> int:
    """Tokens computed for sequences of these lengths.

    pads: all are filled to the longest; otherwise each is filled to a multiple of `length_multiple`.
    """
    if pads:
        return max(lengths, default=0) * len(lengths)
    return sum(-(-length // length_multiple) * length_multiple for length in lengths)


def pack(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Split all items into batches of similar length within the budget; returns indices.

    An item longer than the budget gets a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Ascending order: the newest item is the longest of its batch.
        if batches and lengths[index] * (len(batches[-1]) + 1) <= max_batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
