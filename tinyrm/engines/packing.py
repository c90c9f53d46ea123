"""Lay sequences side by side without padding, and fill the fixed shapes that a GPU runs. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding
from tinyrm.manifest import ReadAt

# A bucket has places for sequences of this length on average; more and shorter sequences need a larger bucket.
TOKENS_PER_SEQUENCE = 64
# Any id of the vocabulary would do: its results are not used.
FILL_ID = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """The tokens of all sequences in one row.

    ids, positions: int64 [tokens].
    cu_seqlens: int32 [sequences + 1], where each sequence begins and the last one ends.
    read_rows: int64 [sequences], which of the tokens of each sequence is read.
    max_tokens: the length of the longest sequence.
    """

    ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    positions: NDArray[np.int64]
    read_rows: NDArray[np.int64]
    max_tokens: int

    def flat(self) -> NDArray[np.int64]:
        """Return ids, positions, rows to read and boundaries in one array, so that one copy takes them to a device."""
        return np.concatenate([self.ids, self.positions, self.read_rows, self.cu_seqlens], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One fixed shape.

    tokens: of all sequences together.
    max_sequences: real sequences that fit.
    places: for real sequences and those that fill the bucket.
    longest: tokens of the longest sequence that fits.
    """

    tokens: int
    max_sequences: int
    places: int
    longest: int

    @classmethod
    def of(cls, tokens: int, max_tokens: int) -> "Bucket":
        """Return a bucket for sequences of up to `max_tokens`, with places enough that no filler is longer."""
        longest = min(tokens, max_tokens)
        max_sequences = max(1, tokens // TOKENS_PER_SEQUENCE)
        return cls(tokens, max_sequences, max_sequences + tokens // longest + 1, longest)

    @property
    def flat_size(self) -> int:
        """The length of `Packed.flat` of a filled bucket."""
        return 2 * self.tokens + 2 * self.places + 1

    def takes(self, tokens: int, sequences: int) -> bool:
        return tokens <= self.tokens and sequences <= self.max_sequences


def pack_sequences(sequences: Sequence[Encoding], mask_id: int, read_at: ReadAt = "mask") -> Packed:
    """Lay sequences side by side.

    read_at: which token is read; for the mean of all, no row is looked up.

    A sequence without a mask, as a warm-up sends it, is read at its first token.

    Raises ValueError for an empty sequence and for ids that are not a row of integers.
    """
    rows = [np.asarray(sequence.input_ids) for sequence in sequences]
    if any(row.ndim != 1 or row.dtype.kind != "i" or not len(row) for row in rows):
        raise ValueError("the ids of a sequence must be integers in one row, at least one")
    lengths = [len(row) for row in rows]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Packed(
        ids=np.concatenate(rows, dtype=np.int64),
        cu_seqlens=cu_seqlens,
        positions=np.concatenate([np.arange(length) for length in lengths]),
        read_rows=cu_seqlens[:-1] + np.array([read_index(row, mask_id, read_at) for row in rows]),
        max_tokens=max(lengths),
    )


def read_index(ids: NDArray[np.int64], mask_id: int, read_at: ReadAt) -> int:
    if read_at == "mask":
        return int(np.argmax(ids == mask_id))
    return len(ids) - 1 if read_at == "last" else 0


def fill(packed: Packed, bucket: Bucket) -> Packed:
    """Add tokens and sequences until the bucket is full. The filler is spread over all free places.

    Attention costs the square of a sequence's length, so many short ones are cheaper than one long one; a place for
    which no token is left is a sequence of length 0.
    """
    used, sequences = len(packed.ids), len(packed.read_rows)
    missing = bucket.tokens - used
    ends = np.linspace(used, bucket.tokens, bucket.places - sequences + 1).astype(np.int32)[1:]
    return Packed(
        ids=np.pad(packed.ids, (0, missing), constant_values=FILL_ID),
        cu_seqlens=np.concatenate([packed.cu_seqlens, ends]),
        positions=np.pad(packed.positions, (0, missing)),
        read_rows=np.pad(packed.read_rows, (0, bucket.places - sequences)),
        max_tokens=bucket.longest,
    )
