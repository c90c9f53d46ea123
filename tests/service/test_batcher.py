"""The waiting list: who goes next, and that everybody gets exactly one answer whatever the engine does."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.batcher import MAX_PADDING_SHARE, Answered, Batcher, BatchReport, Run, Taken, Waiting, take_batch
from tinyrm.batch import padded_cost
from tinyrm.encoding import Encoding, Truncation
from tinyrm.errors import EngineFailed, Overloaded, ShuttingDown

# Generous: it is only ever reached by a waiter that nobody answers.
HANGS_S = 10


@dataclass(frozen=True)
class Entry:
    """A waiting item as data: tokens and number of its readings, and whether its client left."""

    length: int
    readings: int = 1
    abandoned: bool = False


entries = st.lists(st.builds(Entry, st.integers(1, 300), st.integers(1, 2), st.booleans()), max_size=12)
budgets = st.integers(1, 2000)


def reading(length: int, name: int = 0) -> Encoding:
    return Encoding(np.full(length, name, dtype=np.int64), Truncation())


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Futures need one to exist; it never runs."""
    with closing(asyncio.new_event_loop()) as loop:
        yield loop


def take(loop: asyncio.AbstractEventLoop, queue: list[Entry], budget: int) -> tuple[list[Waiting], Taken]:
    items = []
    for number, entry in enumerate(queue):
        items.append(Waiting((reading(entry.length),) * entry.readings, loop.create_future(), arrived=number))
        if entry.abandoned:
            items[-1].answer.cancel()
    return items, take_batch(items, budget)


def lengths(batch: list[Waiting]) -> list[int]:
    return [len(r) for item in batch for r in item.readings]


@given(queue=entries, budget=budgets)
def test_every_item_is_taken_left_or_dropped_exactly_once(
    loop: asyncio.AbstractEventLoop, queue: list[Entry], budget: int
) -> None:
    items, taken = take(loop, queue, budget)
    assert sorted(map(id, taken.batch + taken.rest + taken.abandoned)) == sorted(map(id, items))
    assert taken.rest == [item for item in items if item in taken.rest], "the rest keeps its order"


@given(queue=entries, budget=budgets)
def test_oldest_item_that_somebody_waits_for_always_goes(
    loop: asyncio.AbstractEventLoop, queue: list[Entry], budget: int
) -> None:
    items, taken = take(loop, queue, budget)
    alive = [item for item, entry in zip(items, queue, strict=True) if not entry.abandoned]
    assert taken.batch[:1] == alive[:1]


@given(queue=entries, budget=budgets)
def test_items_nobody_waits_for_are_dropped_and_reported(
    loop: asyncio.AbstractEventLoop, queue: list[Entry], budget: int
) -> None:
    items, taken = take(loop, queue, budget)
    assert taken.abandoned == [item for item, entry in zip(items, queue, strict=True) if entry.abandoned]


@given(queue=entries, budget=budgets)
def test_batch_stays_within_the_budget_and_its_padding_is_small(
    loop: asyncio.AbstractEventLoop, queue: list[Entry], budget: int
) -> None:
    _, taken = take(loop, queue, budget)
    if len(taken.batch) > 1:
        cost = padded_cost(lengths(taken.batch))
        assert cost <= budget
        assert cost - sum(lengths(taken.batch)) <= MAX_PADDING_SHARE * cost


def test_equal_items_fill_the_budget_to_the_brim(loop: asyncio.AbstractEventLoop) -> None:
    _, taken = take(loop, [Entry(100)] * 12, 1000)
    assert len(taken.batch) == 10


def test_nearest_in_length_join_first(loop: asyncio.AbstractEventLoop) -> None:
    items, taken = take(loop, [Entry(100), Entry(85), Entry(99), Entry(101)], 303)
    assert {id(item) for item in taken.batch} == {id(items[0]), id(items[2]), id(items[3])}


def test_item_above_the_budget_goes_alone(loop: asyncio.AbstractEventLoop) -> None:
    _, taken = take(loop, [Entry(500), Entry(500), Entry(10)], 100)
    assert lengths(taken.batch) == [500]
    assert len(taken.rest) == 2


def test_short_item_does_not_join_a_long_one(loop: asyncio.AbstractEventLoop) -> None:
    _, taken = take(loop, [Entry(300), Entry(3)], 2000)
    assert lengths(taken.batch) == [300]


def logits_of(readings: Sequence[Encoding]) -> NDArray[np.float32]:
    """Rows that tell whose they are: (name, tokens)."""
    return np.array([[r.input_ids[0], len(r)] for r in readings], dtype=np.float32)


@dataclass
class Gated:
    """An engine that waits for its gate and remembers what it ran."""

    gate: threading.Event = field(default_factory=threading.Event)
    ran: list[list[int]] = field(default_factory=list)

    def run(self, readings: Sequence[Encoding]) -> NDArray[np.float32]:
        self.ran.append([int(r.input_ids[0]) for r in readings])
        self.gate.wait(HANGS_S)
        return logits_of(readings)


@asynccontextmanager
async def running(run: Run, *, max_queue_tokens: int = 100_000) -> AsyncIterator[Batcher]:
    batcher = Batcher(run, max_batch_tokens=1000, max_queue_tokens=max_queue_tokens)
    batcher.start()
    yield batcher
    await batcher.drain(HANGS_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANGS_S):
        while not condition():  # noqa: ASYNC110  # what is waited for knows of no event
            await asyncio.sleep(0.001)


def submit(batcher: Batcher, name: int, *, tokens: int = 10) -> "asyncio.Task[Answered]":
    return asyncio.create_task(batcher.submit((reading(tokens, name),)))


async def outcomes(tasks: Sequence["asyncio.Task[Answered]"]) -> list[Answered | BaseException]:
    async with asyncio.timeout(HANGS_S):
        return await asyncio.gather(*tasks, return_exceptions=True)


def explode(error: Exception) -> Run:
    def run(_: Sequence[Encoding]) -> NDArray[np.float32]:
        raise error

    return run


# What an engine may do to a batch that holds a bad item.
FAULTS: dict[str, Run] = {
    "fails": explode(EngineFailed("no")),
    "raises an error of its own": explode(ValueError("bad shape")),
    "runs out of memory": explode(MemoryError()),
    "raises what no future can carry": explode(StopIteration()),
    "returns a row too few": lambda readings: logits_of(readings)[1:],
    "returns a row too many": lambda readings: logits_of([*readings, reading(1)]),
    "returns three logits": lambda readings: np.zeros((len(readings), 3), dtype=np.float32),
    "returns nothing": lambda readings: cast("NDArray[np.float32]", None),
}


def engine_with(faults: dict[int, str]) -> Run:
    """Does its worst to each batch that holds an item with a fault."""

    def run(readings: Sequence[Encoding]) -> NDArray[np.float32]:
        bad = [faults[int(r.input_ids[0])] for r in readings if int(r.input_ids[0]) in faults]
        return FAULTS[bad[0]](readings) if bad else logits_of(readings)

    return run


def assert_answers(results: list[Answered | BaseException], faults: dict[int, str]) -> None:
    for name, result in enumerate(results):
        if name in faults:
            assert isinstance(result, EngineFailed), result
        else:
            assert isinstance(result, Answered), result
            assert result.logits.tolist() == [[name, 10]]


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_item_fails_alone_and_the_next_one_is_served(fault: str) -> None:
    async def scenario() -> None:
        faults = {1: fault}
        async with running(engine_with(faults)) as batcher:
            assert_answers(await outcomes([submit(batcher, name) for name in range(4)]), faults)
            (later,) = await outcomes([submit(batcher, 7)])
            assert isinstance(later, Answered)
            assert batcher.is_alive
            assert batcher.queue_tokens == 0

    asyncio.run(scenario())


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, 11), st.sampled_from(sorted(FAULTS))))
def test_everybody_gets_their_own_answer_whatever_the_engine_does(faults: dict[int, str]) -> None:
    async def scenario() -> None:
        async with running(engine_with(faults)) as batcher:
            assert_answers(await outcomes([submit(batcher, name) for name in range(12)]), faults)
            assert (batcher.queue_items, batcher.queue_tokens) == (0, 0)

    asyncio.run(scenario())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=2), min_size=1, max_size=12))
def test_rows_go_to_whom_they_belong(queue: list[list[int]]) -> None:
    async def scenario() -> None:
        async with running(logits_of) as batcher:
            async with asyncio.timeout(HANGS_S):
                answers = await asyncio.gather(
                    *(batcher.submit(tuple(reading(n, name) for n in item)) for name, item in enumerate(queue))
                )
            for name, (item, answer) in enumerate(zip(queue, answers, strict=True)):
                assert answer.logits.tolist() == [[name, n] for n in item]

    asyncio.run(scenario())


def test_nan_reaches_only_the_item_it_belongs_to() -> None:
    def run(readings: Sequence[Encoding]) -> NDArray[np.float32]:
        rows = logits_of(readings)
        rows[rows[:, 0] == 1] = np.nan
        return rows

    async def scenario() -> None:
        async with running(run) as batcher:
            results = await outcomes([submit(batcher, name) for name in range(3)])
            finite = [isinstance(r, Answered) and bool(np.isfinite(r.logits).all()) for r in results]
            assert finite == [True, False, True]

    asyncio.run(scenario())


def test_what_waits_while_the_engine_is_busy_leaves_as_one_batch() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run) as batcher:
            first = submit(batcher, 0)
            await until(lambda: engine.ran == [[0]])
            others = [submit(batcher, name) for name in (1, 2, 3)]
            await until(lambda: batcher.queue_items == 3)
            engine.gate.set()
            await outcomes([first, *others])
        assert engine.ran == [[0], [1, 2, 3]]

    asyncio.run(scenario())


def test_full_queue_refuses_and_takes_again_once_there_is_room() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run, max_queue_tokens=100) as batcher:
            first = submit(batcher, 0, tokens=100)
            await until(lambda: engine.ran == [[0]])
            waiting = submit(batcher, 1, tokens=100)
            await until(lambda: batcher.queue_tokens == 100)
            with pytest.raises(Overloaded, match="100 tokens are waiting"):
                await batcher.submit((reading(1),))
            engine.gate.set()
            await outcomes([first, waiting])
            assert isinstance(await batcher.submit((reading(100),)), Answered)

    asyncio.run(scenario())


def test_work_of_a_client_that_left_is_dropped_and_leaves_no_tokens_behind() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run) as batcher:
            first, left, stays = submit(batcher, 0), submit(batcher, 1, tokens=500), submit(batcher, 2, tokens=700)
            await until(lambda: batcher.queue_tokens == 1200)
            left.cancel()
            engine.gate.set()
            await outcomes([first, left, stays])
            await until(lambda: batcher.queue_tokens == 0)
        assert engine.ran == [[0], [2]]

    asyncio.run(scenario())


def test_drain_finishes_what_was_accepted_and_takes_nothing_more() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run) as batcher:
            tasks = [submit(batcher, name, tokens=600) for name in range(3)]
            await until(lambda: batcher.queue_items == 2)
            draining = asyncio.create_task(batcher.drain(HANGS_S))
            await until(lambda: not batcher.is_alive)
            with pytest.raises(ShuttingDown):
                await batcher.submit((reading(1),))
            assert not draining.done()
            engine.gate.set()
            assert all(isinstance(result, Answered) for result in await outcomes(tasks))
            await draining

    asyncio.run(scenario())


def test_idle_service_drains_at_once() -> None:
    async def scenario() -> None:
        batcher = Batcher(logits_of, max_batch_tokens=100, max_queue_tokens=100)
        batcher.start()
        await asyncio.sleep(0)
        started = time.perf_counter()
        await batcher.drain(HANGS_S)
        assert time.perf_counter() - started < HANGS_S / 2

    asyncio.run(scenario())


def test_drain_timeout_answers_everybody_although_the_engine_still_runs() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run) as batcher:
            tasks = [submit(batcher, name, tokens=600) for name in range(3)]
            await until(lambda: batcher.queue_items == 2)
            started = time.perf_counter()
            await batcher.drain(0.02)
            results = await outcomes(tasks)
            took = time.perf_counter() - started
            engine.gate.set()
        assert [type(result) for result in results] == [ShuttingDown] * 3
        assert took < HANGS_S / 2

    asyncio.run(scenario())


def test_drain_timeout_reaches_items_that_wait_to_be_run_alone() -> None:
    async def scenario() -> None:
        engine = Gated()

        def run(readings: Sequence[Encoding]) -> NDArray[np.float32]:
            return engine.run(readings) if len(readings) == 1 else explode(EngineFailed("no"))(readings)

        async with running(run) as batcher:
            tasks = [submit(batcher, name) for name in range(3)]
            await until(lambda: engine.ran == [[0]])
            await batcher.drain(0.02)
            results = await outcomes(tasks)
            engine.gate.set()
        assert [type(result) for result in results] == [ShuttingDown] * 3

    asyncio.run(scenario())


def test_every_run_is_reported_with_its_tokens_and_padding() -> None:
    async def scenario() -> list[BatchReport]:
        reports: list[BatchReport] = []
        batcher = Batcher(logits_of, max_batch_tokens=1000, max_queue_tokens=1000, on_batch=reports.append)
        batcher.start()
        await outcomes([submit(batcher, 0, tokens=100), submit(batcher, 1, tokens=90)])
        await batcher.drain(HANGS_S)
        return reports

    (report,) = asyncio.run(scenario())
    assert (report.items, report.real_tokens, report.padded_tokens, report.failed) == (2, 190, 200, False)


def test_retry_after_follows_the_queue_and_the_rate() -> None:
    batcher = Batcher(logits_of, max_batch_tokens=1, max_queue_tokens=1)
    assert batcher.retry_after_s() == 1
    batcher.queue_tokens, batcher.tokens_per_s = 1000, 100
    assert batcher.retry_after_s() == 10
