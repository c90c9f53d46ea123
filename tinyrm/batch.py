"""Encodings -> padded arrays, and what a batch costs in tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding

# Rows of a CPU engine share nothing, so a larger batch only makes its first rows wait for its last.
BATCH_TOKENS_ON_CPU, BATCH_TOKENS_ON_GPU = 1024, 16_384


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


def padded_cost(lengths: Sequence[int], step: int = 0) -> int:
    """Tokens computed for items of these lengths by an engine that fills each to a multiple of `step`.

    0: items share a batch and are filled to the longest.
    """
    if step:
        return sum(-(-length // step) * step for length in lengths)
    return max(lengths, default=0) * len(lengths)


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
