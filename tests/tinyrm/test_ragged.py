"""Test that rows run with rows of their own length only: minimal padding, and no dependence on batch-mates."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinyrm.batching import MAX_GROUP_TOKENS, run_by_length
from tinyrm.encoding import Encoding, Truncation


class Recorder:
    """Return the first id of each row and its number of tokens."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, ids: Any, mask: Any) -> Any:
        assert ids.flags.c_contiguous
        assert mask.flags.c_contiguous
        self.shapes.append(ids.shape)
        return np.stack([ids[:, 0], mask.sum(axis=1)], axis=1).astype(np.float32)


def sequences(lengths: list[int]) -> list[Encoding]:
    return [Encoding(np.full(length, number), Truncation()) for number, length in enumerate(lengths, start=1)]


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=12), st.sampled_from([1, 16, 64]))
def test_every_row_gets_its_own_result_and_hardly_any_padding(lengths: list[int], step: int) -> None:
    recorder = Recorder()
    logits = run_by_length(recorder, sequences(lengths), length_multiple=step)
    assert logits.tolist() == [[row + 1, length] for row, length in enumerate(lengths)]
    assert sum(r * n for r, n in recorder.shapes) == sum(-(-length // step) * step for length in lengths)
    assert all(r == 1 or r * n <= MAX_GROUP_TOKENS for r, n in recorder.shapes)


def test_rows_of_one_length_share_a_run() -> None:
    recorder = Recorder()
    run_by_length(recorder, sequences([7, 9, 7, 7]))
    assert sorted(recorder.shapes) == [(1, 9), (3, 7)]
