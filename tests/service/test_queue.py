"""Test which items the queue chooses next."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.queue import MAX_PADDING_SHARE, FairQueue, QueueItem, choose_in_turn, choose_similar_lengths
from tinyrm.batching import padded_cost
from tinyrm.encoding import Encoding, Truncation


@dataclass(frozen=True)
class Entry:
    """A queue item as data: tokens and number of its sequences, and whether its client disconnected."""

    length: int
    sequences: int = 1
    abandoned: bool = False
    key: int = 0


entries = st.lists(
    st.builds(Entry, st.integers(1, 300), st.integers(1, 2), st.booleans(), st.integers(0, 2)), max_size=12
)
budgets = st.integers(1, 2000)


def sequence(length: int, name: int = 0) -> Encoding:
    return Encoding(np.full(length, name, dtype=np.int64), Truncation())


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return an event loop that never runs: futures need one."""
    with closing(asyncio.new_event_loop()) as loop:
        yield loop


def line_up(
    loop: asyncio.AbstractEventLoop, entries: list[Entry], budget: int, *, pads: bool = True
) -> tuple[FairQueue, list[QueueItem]]:
    queue, items = FairQueue(budget, choose_similar_lengths if pads else choose_in_turn), []
    for number, entry in enumerate(entries):
        sequences = (sequence(entry.length),) * entry.sequences
        items.append(QueueItem(sequences, loop.create_future(), arrived_s=number, fairness_key=entry.key))
        queue.add(items[-1])
        if entry.abandoned:
            items[-1].result.cancel()
    return queue, items


def take(loop: asyncio.AbstractEventLoop, entries: list[Entry], budget: int) -> tuple[list[QueueItem], list[QueueItem]]:
    queue, items = line_up(loop, entries, budget)
    return items, queue.take().batch


def lengths(batch: list[QueueItem]) -> list[int]:
    return [len(r) for item in batch for r in item.sequences]


@given(queue=entries, budget=budgets, pads=st.booleans())
def test_every_item_with_a_caller_is_taken_exactly_once(
    loop: asyncio.AbstractEventLoop, queue: list[Entry], budget: int, pads: bool
) -> None:
    waiting, items = line_up(loop, queue, budget, pads=pads)
    taken: list[QueueItem] = []
    while len(waiting):
        batch = waiting.take().batch
        assert batch or not len(waiting), "only the abandoned were left"
        taken += batch
    alive = [item for item, entry in zip(items, queue, strict=True) if not entry.abandoned]
    assert sorted(map(id, taken)) == sorted(map(id, alive))
    assert waiting.tokens == 0


@given(queue=entries, budget=budgets, pads=st.booleans())
def test_the_item_with_the_first_turn_always_goes(
    loop: asyncio.AbstractEventLoop, queue: list[Entry], budget: int, pads: bool
) -> None:
    waiting, items = line_up(loop, queue, budget, pads=pads)
    alive = [item for item in items if not item.is_abandoned]
    assert waiting.take().batch[:1] == sorted(alive, key=lambda item: (item.turn, item.arrived_s))[:1]


@given(lengths=st.lists(st.integers(1, 300), max_size=12))
def test_one_key_alone_is_served_in_the_order_of_arrival(loop: asyncio.AbstractEventLoop, lengths: list[int]) -> None:
    waiting, items = line_up(loop, [Entry(n) for n in lengths], budget=1, pads=False)
    assert [item for _ in items for item in waiting.take().batch] == items


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=1, max_size=40))
def test_no_key_falls_behind_another_by_more_than_one_item_of_each(
    loop: asyncio.AbstractEventLoop, work: list[tuple[int, int]]
) -> None:
    """The bound of start-time fair queueing: served tokens of two keys with work differ by less than two items."""
    waiting, items = line_up(loop, [Entry(length, key=key) for length, key in work], budget=1, pads=False)
    left = {key: sum(item.fairness_key == key for item in items) for key in range(4)}
    served = dict.fromkeys(range(4), 0)
    always_waiting = [key for key in left if left[key]]
    while all(left[key] for key in always_waiting):
        ((item,), _) = waiting.take()
        served[item.fairness_key] += item.tokens  # type: ignore[index]
        left[item.fairness_key] -= 1  # type: ignore[index]
        counts = [served[key] for key in always_waiting]
        assert max(counts) - min(counts) <= 2 * 300


def test_abandoned_items_leave_no_tokens_behind(loop: asyncio.AbstractEventLoop) -> None:
    waiting, _ = line_up(loop, [Entry(10, abandoned=True)] * 3, budget=100)
    assert waiting.tokens == 30
    assert waiting.take() == ([], [])
    assert (len(waiting), waiting.tokens) == (0, 0)


def test_sequences_that_share_no_padding_go_in_turn_whatever_their_length(loop: asyncio.AbstractEventLoop) -> None:
    waiting, items = line_up(loop, [Entry(300), Entry(3), Entry(100), Entry(650), Entry(5)], budget=1000, pads=False)
    assert waiting.take().batch == items[:3]


@given(queue=entries, budget=budgets)
def test_batch_stays_within_the_budget_and_its_padding_is_small(
    loop: asyncio.AbstractEventLoop, queue: list[Entry], budget: int
) -> None:
    _, batch = take(loop, queue, budget)
    if len(batch) > 1:
        cost = padded_cost(lengths(batch))
        assert cost <= budget
        assert cost - sum(lengths(batch)) <= MAX_PADDING_SHARE * cost


def test_equal_items_fill_the_budget_completely(loop: asyncio.AbstractEventLoop) -> None:
    _, batch = take(loop, [Entry(100)] * 12, 1000)
    assert len(batch) == 10


def test_nearest_in_length_join_first(loop: asyncio.AbstractEventLoop) -> None:
    items, batch = take(loop, [Entry(100), Entry(85), Entry(99), Entry(101)], 303)
    assert {id(item) for item in batch} == {id(items[0]), id(items[2]), id(items[3])}


def test_item_above_the_budget_goes_alone(loop: asyncio.AbstractEventLoop) -> None:
    _, batch = take(loop, [Entry(500), Entry(500), Entry(10)], 100)
    assert lengths(batch) == [500]


def test_short_item_does_not_join_a_long_one(loop: asyncio.AbstractEventLoop) -> None:
    _, batch = take(loop, [Entry(300), Entry(3)], 2000)
    assert lengths(batch) == [300]
