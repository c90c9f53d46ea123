"""Test that padding loses nothing, and that batches respect the budget."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrm.batching import collate, pack, padded_cost
from tinyrm.encoding import Encoding, Truncation

PAD = 3
# The pad id may also stand inside a text: only the attention mask may tell padding from tokens.
rows = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), min_size=1, max_size=12)
lengths = st.lists(st.integers(1, 300), max_size=60)


def encodings(ids: list[list[int]]) -> list[Encoding]:
    return [Encoding(np.array(row, dtype=np.int64), Truncation()) for row in ids]


@given(rows)
def test_collate_then_split_is_the_identity(ids: list[list[int]]) -> None:
    batch = collate(encodings(ids), PAD)
    split = [row[mask == 1].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    assert split == ids


@given(rows)
def test_padding_is_on_the_right_and_no_longer_than_needed(ids: list[list[int]]) -> None:
    batch = collate(encodings(ids), PAD)
    assert batch.input_ids.shape == batch.attention_mask.shape == (len(ids), max(map(len, ids)))
    assert (batch.input_ids[batch.attention_mask == 0] == PAD).all()
    assert (np.diff(batch.attention_mask, axis=1) <= 0).all()


@given(rows)
def test_the_padded_cost_is_the_size_of_the_batch(ids: list[list[int]]) -> None:
    batch = collate(encodings(ids), PAD)
    assert batch.attention_mask.sum() == sum(map(len, ids))
    assert batch.input_ids.size == padded_cost([len(row) for row in ids])


@given(rows, st.integers(1, 50))
def test_a_length_pads_further_and_never_truncates(ids: list[list[int]], length: int) -> None:
    batch = collate(encodings(ids), PAD, length=length)
    assert batch.input_ids.shape == (len(ids), max(length, *map(len, ids)))
    assert batch.attention_mask.sum() == sum(map(len, ids))


def test_arrays_have_the_types_of_the_graph() -> None:
    batch = collate(encodings([[1, 2], [1]]), PAD)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    assert batch.input_ids.tolist() == [[1, 2], [1, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1], [1, 0]]


def test_cost_of_a_batch_counts_its_padding() -> None:
    assert padded_cost([3, 10, 5]) == 30
    assert padded_cost([]) == 0


@given(lengths, st.integers(1, 1000))
def test_pack_covers_every_item_exactly_once(sizes: list[int], budget: int) -> None:
    assert sorted(chain.from_iterable(pack(sizes, budget))) == list(range(len(sizes)))


@given(lengths, st.integers(1, 1000))
def test_no_batch_of_several_items_exceeds_the_budget(sizes: list[int], budget: int) -> None:
    for batch in pack(sizes, budget):
        assert len(batch) == 1 or padded_cost([sizes[i] for i in batch]) <= budget


@given(lengths, st.integers(1, 1000))
def test_pack_opens_a_batch_only_when_the_last_one_is_full(sizes: list[int], budget: int) -> None:
    batches = pack(sizes, budget)
    for batch, following in pairwise(batches):
        assert padded_cost([sizes[i] for i in [*batch, following[0]]]) > budget


@given(lengths, st.integers(1, 1000))
def test_pack_puts_similar_lengths_together(sizes: list[int], budget: int) -> None:
    in_order = [sizes[i] for i in chain.from_iterable(pack(sizes, budget))]
    assert in_order == sorted(sizes)


@pytest.mark.parametrize(("budget", "batches"), [(29, [[1, 0], [2]]), (30, [[1, 0, 2]]), (19, [[1], [0], [2]])])
def test_pack_at_the_edge_of_the_budget(budget: int, batches: list[list[int]]) -> None:
    assert pack([10, 2, 10], budget) == batches
