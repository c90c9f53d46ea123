"""Test how responses become sets: in one sequence, split into several, and joined again."""

import random
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import TOY_SPEC
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder, Encoding
from tinyrm.errors import EngineFailed, InvalidInput
from tinyrm.readout import read_columns, read_out
from tinyrm.sets import MAX_ANCHORS, find_anchors, join, read_set, split

TEMPLATE = TOY_SPEC.template.of_a_set()
WORDS = ["two", "four", "five", "apples", "and", "pears", "I", "cannot", "help"]
SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def sets(encoder: Encoder) -> Encoder:
    return Encoder(encoder._text.tokenizer, TEMPLATE, encoder.special, TOY_SPEC.max_tokens)


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"{i} {' '.join(draw.choices(WORDS, k=draw.randint(1, 120)))}" for i in range(count)]


# Splitting


# Room for the largest response beside the largest that all sets share.
@given(sizes=SIZES, room=st.integers(120, 400), overlapping=st.booleans())
def test_every_response_is_in_a_set_that_fits(sizes: list[int], room: int, overlapping: bool) -> None:
    parts = split(sizes, room, overlapping=overlapping)
    assert all(sum(sizes[i] for i in part) <= room for part in parts), "the largest of these has the room it needs"
    assert all(part == sorted(set(part)) for part in parts)
    times = [sum(i in part for part in parts) for i in range(len(sizes))]
    if sum(sizes) <= room:
        assert len(parts) == 1
    anchors = [i for i, count in enumerate(times) if count == len(parts)]
    if overlapping:
        assert anchors, "sets without a common response could not be joined"
        assert len(parts) == 1 or len(anchors) <= MAX_ANCHORS
        assert all(count == 1 for i, count in enumerate(times) if i not in anchors)
    else:
        assert set(times) == {1}


@given(sizes=SIZES, room=st.integers(100, 400))
def test_sets_are_not_many_more_than_the_tokens_need(sizes: list[int], room: int) -> None:
    def most(left: int) -> int:
        """Return how many sets there may be with so much room, if two neighbours do not fit into one."""
        return 2 * -(-sum(sizes) // left)

    assert len(split(sizes, room, overlapping=False)) <= most(room)
    anchored = room - sum(sizes[i] for i in find_anchors(sizes, room))
    assert len(split(sizes, room, overlapping=True)) <= most(anchored)


def test_a_response_beyond_the_room_has_a_set_of_its_own() -> None:
    assert split([5, 500, 5], 100, overlapping=False) == [[0], [1], [2]]
    assert split([500], 100, overlapping=True) == [[0]]
    assert [0, 1] in split([5, 500, 90], 100, overlapping=True)


# Joining


@given(sizes=SIZES, room=st.integers(100, 400), data=st.data())
def test_sets_that_move_all_their_scores_are_joined_exactly(sizes: list[int], room: int, data: st.DataObject) -> None:
    truth = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=len(sizes), max_size=len(sizes))), dtype=float)
    parts = split(sizes, room, overlapping=True)
    moved = np.full((len(parts), len(sizes)), np.nan)
    for number, part in enumerate(parts):
        moved[number, part] = truth[part] + 7 * number
    joined = join(moved, overlapping=True)
    np.testing.assert_allclose(joined - joined.mean(), truth - truth.mean(), atol=1e-9)
    alone = np.where(np.isnan(moved), np.nan, truth)
    np.testing.assert_array_equal(join(alone, overlapping=False), truth)


def test_the_scores_of_one_set_are_its_own() -> None:
    row = np.array([0.1, -2.5, 0.0], dtype=np.float32)
    scores = read_set(row, (1, 0, 1))
    assert scores.tolist() == [row[1], row[0], row[1]]
    np.testing.assert_array_equal(join([scores], overlapping=True), scores)


def test_logits_that_are_missing_or_not_finite_are_the_engines_failure() -> None:
    read_set(np.array([1.0, np.nan], dtype=np.float32), (0, -1))
    with pytest.raises(EngineFailed, match="finite"):
        read_set(np.array([1.0, np.nan], dtype=np.float32), (0, 1))
    with pytest.raises(EngineFailed, match="expected 2 logits"):
        read_set(np.array([1.0], dtype=np.float32), (0, 1))


# Encoding


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_neither_order_nor_repetition_changes_the_sequence(sets: Encoder, count: int) -> None:
    own = texts(count)
    orders = list(permutations(range(count))) if count < 4 else [range(count), range(count)[::-1]]
    whole = sets.tokenize("Which is best?", "What is 2 + 2?", own)
    (first,) = sets.assemble_sets(whole, range(count))
    for order in orders:
        read = sets.tokenize("Which is best?", "What is 2 + 2?", [own[i] for i in order] + [own[0]])
        (sequence,) = sets.assemble_sets(read, range(count + 1))
        assert sequence.input_ids.tolist() == first.input_ids.tolist()
        assert list(sequence.columns[:count]) == [first.columns[i] for i in order]
        assert sequence.columns[count] == first.columns[0]
    assert sorted(first.columns) == list(range(count))


def test_the_column_of_a_response_is_where_its_text_is(sets: Encoder) -> None:
    own = texts(5)
    (sequence,) = sets.assemble_sets(sets.tokenize("", "2 + 2?", own), range(5))
    prompt, *lengths = sets.special.part_lengths(sequence.input_ids)
    assert prompt + sum(lengths) == len(sequence)
    for text, column in zip(own, sequence.columns, strict=True):
        alone = sets.encode_one("", "2 + 2?", text)
        start = prompt + sum(lengths[:column])
        part = sequence.input_ids[start : start + lengths[column]]
        assert part.tolist() == alone.input_ids[prompt:].tolist()


@given(seed=st.integers(0, 99), count=st.integers(2, 24), max_tokens=st.sampled_from([None, 512, 700]))
def test_sequences_stay_within_the_limit_and_hold_everything(
    sets: Encoder, seed: int, count: int, max_tokens: int | None
) -> None:
    read = sets.tokenize("Which is best?", "word " * seed * 5, texts(count, seed))
    sequences = sets.assemble_sets(read, range(count), max_tokens)
    assert all(len(sequence) <= (max_tokens or sets.max_set_tokens) for sequence in sequences)
    held = np.array([sequence.columns for sequence in sequences]) >= 0
    assert held.any(axis=0).all()
    assert held.all(axis=0).any(), "scores depend on the set, so all share a response"
    for sequence in sequences:
        assert sets.count_scores(sequence) == max(sequence.columns) + 1


def test_a_set_that_scores_alone_is_split_without_overlap(encoder: Encoder) -> None:
    alone = Encoder(encoder._text.tokenizer, TEMPLATE, encoder.special, TOY_SPEC.max_tokens, scores_alone=True)
    sequences = alone.assemble_sets(alone.tokenize("", "2 + 2?", texts(24)), range(24), 512)
    assert len(sequences) > 1
    assert (np.array([sequence.columns for sequence in sequences]) >= 0).sum(axis=0).tolist() == [1] * 24


def test_dropped_tokens_are_those_of_each_response_in_the_order_of_the_request(sets: Encoder) -> None:
    long = ["short", "word " * 300, "a", "word " * 400]
    read = sets.tokenize("", "2 + 2?", long)
    (sequence,) = sets.assemble_sets(read, range(4))
    dropped = sequence.truncation.responses
    assert [bool(count) for count in dropped] == [False, True, False, True]
    assert dropped[3] - dropped[1] == len(read.responses[3]) - len(read.responses[1])
    a, b = (sets.encode(Comparison("?", *pair), "")[0] for pair in (long[:2], long[1::-1]))
    assert (a.truncation.response_a, a.truncation.response_b) == (0, b.truncation.response_a)


def test_responses_that_are_the_same_as_far_as_they_are_read_share_a_column(sets: Encoder) -> None:
    read = sets.tokenize("", "2 + 2?", ["word " * 400 + "yes", "short", "word " * 400 + "no"])
    (sequence,) = sets.assemble_sets(read, range(3))
    assert sequence.columns[0] == sequence.columns[2] != sequence.columns[1]
    assert sets.count_scores(sequence) == 2


def test_a_pair_is_read_whatever_place_its_responses_have(sets: Encoder) -> None:
    row = np.array([[2.0, 0.5, 99.0]], dtype=np.float32)
    forward, backward = (
        sets.assemble(sets.tokenize("", "?", pair), 0, 1, swap=True) for pair in (["b", "a"], ["a", "b"])
    )
    one, other = (read_out(read_columns(sequences, row), 0.5) for sequences in (forward, backward))
    assert one.margin == -other.margin
    assert abs(one.margin) == 3
    equal = sets.encode(Comparison("?", "a", "a"), "")
    assert (read_out(read_columns(equal, row), 1.0).preferred, sets.count_scores(equal[0])) == ("tie", 1)


def test_only_an_encoder_of_sets_makes_them(encoder: Encoder, sets: Encoder) -> None:
    with pytest.raises(InvalidInput, match="not a set"):
        encoder.assemble_sets(encoder.tokenize("", "?", ["a", "b"]), (0, 1))
    assert not sets.scores_alone
    assert isinstance(sets.encode_one("", "?", "a"), Encoding)
