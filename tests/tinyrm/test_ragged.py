"""Rows run with their likes only: no padding beyond the step, and no answer that depends on batch-mates."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinyrm.engines.by_length import MAX_TOKENS, run_by_length


class Recorder:
    """Answers each row with its first id and the number of tokens it saw."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, ids: Any, mask: Any) -> Any:
        assert ids.flags.c_contiguous
        assert mask.flags.c_contiguous
        self.shapes.append(ids.shape)
        return np.stack([ids[:, 0], mask.sum(axis=1)], axis=1).astype(np.float32)


def rows(lengths: list[int]) -> tuple[Any, Any]:
    ids = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = row + 1
        mask[row, :length] = 1
    return ids, mask


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=12), st.sampled_from([1, 16, 64]))
def test_every_row_is_answered_in_its_place_and_hardly_padded(lengths: list[int], step: int) -> None:
    recorder = Recorder()
    ids, mask = rows(lengths)
    logits = run_by_length(recorder, ids, mask, step=step)
    assert logits.tolist() == [[row + 1, length] for row, length in enumerate(lengths)]
    assert sum(r * n for r, n in recorder.shapes) == sum(-(-length // step) * step for length in lengths)
    assert all(r == 1 or r * n <= MAX_TOKENS for r, n in recorder.shapes)


def test_rows_of_one_length_share_a_run() -> None:
    recorder = Recorder()
    run_by_length(recorder, *rows([7, 9, 7, 7]))
    assert sorted(recorder.shapes) == [(1, 9), (3, 7)]
