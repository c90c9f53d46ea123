"""Arrange sequences for a device: padded rectangles, groups of one length, batches within a budget of tokens."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding
from tinyrm.errors import EngineFailed

# Tokens of the sequences that run together: enough to spread the cost of a call, few enough to stay in the cache.
MAX_GROUP_TOKENS = 1024
# The id that pads a sequence to a multiple. Any id would do, since the attention mask hides it.
HIDDEN_ID = 0


class Batch(NamedTuple):
    """A rectangle of ids, int64 [batch, tokens], padded on the right, and a mask that is 0 on the padding."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


# A graph as a function: ids and mask [batch, tokens] -> logits [batch, outputs], of sets [batch, most responses].
RunRectangle = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


def collate(sequences: Sequence[Encoding], pad_id: int, *, length: int = 0) -> Batch:
    """Return the sequences padded on the right to the longest of them, or to `length` if that is more.

    Raises TypeError or ValueError for ids that are not a row of integers.
    """
    shape = (len(sequences), max(length, *(len(sequence) for sequence in sequences)))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        np.copyto(input_ids[row, : len(sequence)], sequence.input_ids, casting="same_kind")
        attention_mask[row, : len(sequence)] = 1
    return Batch(input_ids, attention_mask)


def run_by_length(run: RunRectangle, sequences: Sequence[Encoding], *, length_multiple: int = 1) -> NDArray[np.float32]:
    """Return logits [sequences, outputs] in order, from runs of sequences of one length.

    Of sets [sequences, most responses], with zeros behind the logits of a smaller set.

    One sequence keeps a CPU busy: a batch gains little there, and padding only costs. Without padding, a score also
    does not depend on the other sequences of the batch.

    length_multiple: sequences are padded to the next multiple of this many tokens.

    Raises EngineFailed, also for ids that are not a row of integers.
    """
    lengths = np.array([-(-len(sequence) // length_multiple) * length_multiple for sequence in sequences], dtype=int)
    places_run: list[NDArray[np.int64]] = []
    runs: list[NDArray[np.float32]] = []
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        group = max(1, MAX_GROUP_TOKENS // max(1, int(length)))
        for chunk in np.split(places, range(group, len(places), group)):
            try:
                batch = collate([sequences[i] for i in chunk], HIDDEN_ID, length=int(length))
            except (TypeError, ValueError) as error:
                raise EngineFailed(f"the ids of a sequence must be integers in one row: {error}") from error
            places_run.append(chunk)
            runs.append(run(*batch))
    if not runs:
        raise EngineFailed("there are no sequences to run")
    rows = concatenate(runs)
    return rows[np.argsort(np.concatenate(places_run))]


def concatenate(runs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the rows of several runs, [rows, outputs], with zeros behind those of runs with fewer outputs."""
    most = max(rows.shape[1] for rows in runs)
    return np.concatenate([np.pad(rows, ((0, 0), (0, most - rows.shape[1]))) for rows in runs])


def padded_cost(lengths: Sequence[int], *, pads: bool = True, length_multiple: int = 1) -> int:
    """Return the tokens computed for sequences of these lengths.

    pads: whether all are padded to the longest; otherwise each is padded to a multiple of `length_multiple`.
    """
    if pads:
        return max(lengths, default=0) * len(lengths)
    return sum(-(-length // length_multiple) * length_multiple for length in lengths)


def pack(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Return the indices of all items, split into batches of similar length within the budget.

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
