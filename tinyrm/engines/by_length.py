"""Rows of a padded batch regrouped by length, so that a CPU computes no padding and a row's answer has no batch-mates.

A CPU is full with one text; a batch gains nothing there, and padding is pure loss. Rows of one length run together.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tinyrm.errors import EngineFailed

Run = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]

# Rows of one length that run together: enough to spread the cost of a call, few enough to stay in the cache.
MAX_TOKENS = 1024


def run_by_length(
    run: Run, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], *, step: int = 1
) -> NDArray[np.float32]:
    """Label logits [batch, 2] of right-padded rows, run in groups whose length is the next multiple of `step`.

    Raises EngineFailed for arrays that are no such rows.
    """
    _refuse_other_than_rows(input_ids, attention_mask)
    lengths = -(-attention_mask.sum(axis=1) // step) * step
    logits = np.empty((len(input_ids), 2), dtype=np.float32)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        share = max(1, MAX_TOKENS // max(1, int(length)))
        for chunk in np.split(rows, range(share, len(rows), share)):
            logits[chunk] = run(_cut(input_ids[chunk], length), _cut(attention_mask[chunk], length))
    return logits


def _refuse_other_than_rows(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> None:
    shapes = [getattr(array, "shape", None) for array in (input_ids, attention_mask)]
    if shapes[0] != shapes[1] or shapes[0] is None or len(shapes[0]) != 2:
        raise EngineFailed(f"ids and mask have to be two arrays [batch, tokens] of one shape, not {shapes}")


def _cut(array: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Columns up to `length`; zeros beyond those there are, which the mask hides."""
    missing = length - array.shape[1]
    return np.ascontiguousarray(np.pad(array, ((0, 0), (0, missing))) if missing > 0 else array[:, :length])
