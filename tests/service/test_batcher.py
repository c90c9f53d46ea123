"""Test that every item gets exactly one result, whatever the engine does and whichever clients disconnect."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.engine.batcher import Batcher
from service.engine.types import BatchOutput, BatchReport, EngineResult
from tests.support.waiting import PATIENCE_S
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.base import EngineInfo
from tinyrm.errors import DeadlineExceeded, EngineFailed, EngineRestarting, Overloaded, ShuttingDown

ENGINE = EngineInfo("test", "cpu", "fp32", max_batch_tokens=1000, runs_in_flight=1, pads=True)
# Generous: only a caller without a result ever reaches it.
HANGS_S = PATIENCE_S


def sequence(length: int, name: int = 0) -> Encoding:
    return Encoding(np.full(length, name, dtype=np.int64), Truncation())


Run = Callable[[Sequence[Encoding]], NDArray[np.float32]]


def logits_of(sequences: Sequence[Encoding]) -> NDArray[np.float32]:
    """Return rows that identify their sequence: (name, tokens)."""
    return np.array([[r.input_ids[0], len(r)] for r in sequences], dtype=np.float32)


@dataclass
class Gated:
    """An engine that waits for its gate and records what it ran."""

    gate: threading.Event = field(default_factory=threading.Event)
    ran: list[list[int]] = field(default_factory=list)

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        self.ran.append([int(r.input_ids[0]) for r in sequences])
        self.gate.wait(HANGS_S)
        return logits_of(sequences)


def on_a_thread(run: Run) -> Callable[[Sequence[Encoding]], Awaitable[BatchOutput]]:
    """Run in a thread, as an engine does."""
    pool = ThreadPoolExecutor(8)

    async def runs(sequences: Sequence[Encoding]) -> BatchOutput:
        return BatchOutput(await asyncio.get_running_loop().run_in_executor(pool, run, sequences), 0.01)

    return runs


@asynccontextmanager
async def running(
    run: Run, *, max_queue_tokens: int = 100_000, engine: EngineInfo = ENGINE, **options: Any
) -> AsyncIterator[Batcher]:
    batcher = Batcher(on_a_thread(run), engine, max_queue_tokens, **options)
    yield batcher
    await batcher.drain(HANGS_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANGS_S):
        while not condition():  # noqa: ASYNC110  # no event exists for the condition
            await asyncio.sleep(0.001)


def submit(batcher: Batcher, name: int, *, tokens: int = 10, **options: Any) -> "asyncio.Task[EngineResult]":
    return asyncio.create_task(batcher.submit((sequence(tokens, name),), **options))


async def outcomes(tasks: Sequence["asyncio.Task[EngineResult]"]) -> list[EngineResult | BaseException]:
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
    "returns a row too few": lambda sequences: logits_of(sequences)[1:],
    "returns a row too many": lambda sequences: logits_of([*sequences, sequence(1)]),
    "returns three logits": lambda sequences: np.zeros((len(sequences), 3), dtype=np.float32),
    "returns nothing": lambda sequences: cast("NDArray[np.float32]", None),
}


def engine_with(faults: dict[int, str]) -> Run:
    """Return an engine that applies the fault of an item to its whole batch."""

    def run(sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        bad = [faults[int(r.input_ids[0])] for r in sequences if int(r.input_ids[0]) in faults]
        return FAULTS[bad[0]](sequences) if bad else logits_of(sequences)

    return run


def assert_answers(results: list[EngineResult | BaseException], faults: dict[int, str], tokens: int = 10) -> None:
    for name, result in enumerate(results):
        if name in faults:
            assert isinstance(result, EngineFailed), result
        else:
            assert isinstance(result, EngineResult), result
            assert result.logits.tolist() == [[name, tokens]]


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_item_fails_alone_and_the_next_one_is_served(fault: str) -> None:
    async def scenario() -> None:
        faults = {1: fault}
        async with running(engine_with(faults)) as batcher:
            assert_answers(await outcomes([submit(batcher, name) for name in range(4)]), faults)
            (later,) = await outcomes([submit(batcher, 7)])
            assert isinstance(later, EngineResult)
            assert batcher.is_alive
            assert batcher.queue_tokens == 0

    asyncio.run(scenario())


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, 11), st.sampled_from(sorted(FAULTS))))
def test_every_item_gets_its_own_result_whatever_the_engine_does(faults: dict[int, str]) -> None:
    async def scenario() -> None:
        async with running(engine_with(faults)) as batcher:
            assert_answers(await outcomes([submit(batcher, name) for name in range(12)]), faults)
            assert (batcher.queue_items, batcher.queue_tokens) == (0, 0)

    asyncio.run(scenario())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=2), min_size=1, max_size=12))
def test_each_row_goes_to_its_own_item(queue: list[list[int]]) -> None:
    async def scenario() -> None:
        async with running(logits_of) as batcher:
            async with asyncio.timeout(HANGS_S):
                answers = await asyncio.gather(
                    *(batcher.submit(tuple(sequence(n, name) for n in item)) for name, item in enumerate(queue))
                )
            for name, (item, answer) in enumerate(zip(queue, answers, strict=True)):
                assert answer.logits.tolist() == [[name, n] for n in item]

    asyncio.run(scenario())


def test_nan_reaches_only_the_item_it_belongs_to() -> None:
    def run(sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        rows = logits_of(sequences)
        rows[rows[:, 0] == 1] = np.nan
        return rows

    async def scenario() -> None:
        async with running(run) as batcher:
            results = await outcomes([submit(batcher, name) for name in range(3)])
            finite = [isinstance(r, EngineResult) and bool(np.isfinite(r.logits).all()) for r in results]
            assert finite == [True, False, True]

    asyncio.run(scenario())


def test_items_that_queue_while_the_engine_is_busy_run_as_one_batch() -> None:
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


def test_a_full_queue_refuses_until_there_is_room() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run, max_queue_tokens=100) as batcher:
            first = submit(batcher, 0, tokens=100)
            await until(lambda: engine.ran == [[0]])
            waiting = submit(batcher, 1, tokens=100)
            await until(lambda: batcher.queue_tokens == 100)
            with pytest.raises(Overloaded, match="100 tokens are waiting"):
                await batcher.submit((sequence(1),))
            engine.gate.set()
            await outcomes([first, waiting])
            assert isinstance(await batcher.submit((sequence(100),)), EngineResult)

    asyncio.run(scenario())


def test_the_work_of_a_disconnected_client_is_dropped_with_its_tokens() -> None:
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


def test_drain_finishes_accepted_work_and_refuses_more() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run) as batcher:
            tasks = [submit(batcher, name, tokens=600) for name in range(3)]
            await until(lambda: batcher.queue_items == 2)
            draining = asyncio.create_task(batcher.drain(HANGS_S))
            await until(lambda: not batcher.is_alive)
            with pytest.raises(ShuttingDown):
                await batcher.submit((sequence(1),))
            assert not draining.done()
            engine.gate.set()
            assert all(isinstance(result, EngineResult) for result in await outcomes(tasks))
            await draining

    asyncio.run(scenario())


def test_idle_service_drains_at_once() -> None:
    async def scenario() -> None:
        batcher = Batcher(on_a_thread(logits_of), ENGINE, max_queue_tokens=100, max_batch_tokens=100)
        await asyncio.sleep(0)
        await batcher.drain(24 * 3600)

    asyncio.run(scenario())


def test_drain_timeout_fails_all_items_although_the_engine_still_runs() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run) as batcher:
            tasks = [submit(batcher, name, tokens=600) for name in range(3)]
            await until(lambda: batcher.queue_items == 2)
            await batcher.drain(0.02)
            results = await outcomes(tasks)
            engine.gate.set()
        assert [type(result) for result in results] == [ShuttingDown] * 3
        assert engine.ran == [[0]], "the run was held until all had their answer"

    asyncio.run(scenario())


def test_drain_timeout_reaches_items_that_wait_to_be_run_alone() -> None:
    async def scenario() -> None:
        engine = Gated()

        def run(sequences: Sequence[Encoding]) -> NDArray[np.float32]:
            return engine.run(sequences) if len(sequences) == 1 else explode(EngineFailed("no"))(sequences)

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
        batcher = Batcher(on_a_thread(logits_of), ENGINE, 1000, on_batch=reports.append)
        await outcomes([submit(batcher, 0, tokens=100), submit(batcher, 1, tokens=90)])
        await batcher.drain(HANGS_S)
        return reports

    (report,) = asyncio.run(scenario())
    assert list(map(len, report.sequences)) == [100, 90]
    assert (report.real_tokens, report.padded_tokens, report.failed) == (190, 200, False)


def test_the_wait_is_estimated_from_the_rate_and_refused_beyond_its_bound() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run, max_wait_s=2.0, tokens_per_s=100.0, clock=lambda: 0.0) as batcher:
            assert (batcher.estimated_wait_s(), batcher.retry_after_s()) == (0, 1)
            first = submit(batcher, 0, tokens=10)
            await until(lambda: engine.ran == [[0]])
            waiting = submit(batcher, 1, tokens=200)
            await until(lambda: batcher.queue_tokens == 200)
            assert batcher.estimated_wait_s() == pytest.approx(2.1), "what waits, and what runs"
            assert batcher.retry_after_s() == 3
            with pytest.raises(Overloaded, match=r"would wait 2.1 s, more than 2 s"):
                await batcher.submit((sequence(1),))
            engine.gate.set()
            await outcomes([first, waiting])

    asyncio.run(scenario())


def test_work_beyond_its_deadline_fails_at_once_and_never_runs() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run) as batcher:
            first = submit(batcher, 0)
            await until(lambda: engine.ran == [[0]])
            late, patient = submit(batcher, 1, timeout_s=0.05), submit(batcher, 2)
            with pytest.raises(DeadlineExceeded, match=r"0\.05\d s"):
                await late
            assert not engine.gate.is_set()
            engine.gate.set()
            await outcomes([first, patient])
        assert engine.ran == [[0], [2]]

    asyncio.run(scenario())


def test_work_that_waits_far_too_long_fails_and_work_that_runs_is_waited_for() -> None:
    """Accept both while the engine is fast, then block the engine."""

    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run, max_wait_s=0.05, tokens_per_s=1e6) as batcher:
            runs = submit(batcher, 0)
            await until(lambda: engine.ran == [[0]])
            waits = submit(batcher, 1)
            with pytest.raises(Overloaded, match=r"0\.1 s"):
                await waits
            assert not runs.done()
            engine.gate.set()
            assert isinstance((await outcomes([runs]))[0], EngineResult)
            assert isinstance((await outcomes([submit(batcher, 2)]))[0], EngineResult)
        assert engine.ran == [[0], [2]]

    asyncio.run(scenario())


def test_as_many_runs_at_once_as_there_are_streams() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run, engine=replace(ENGINE, runs_in_flight=2)) as batcher:
            tasks = [submit(batcher, name, tokens=900) for name in range(3)]
            await until(lambda: len(engine.ran) == 2)
            await asyncio.sleep(0.02)
            assert (len(engine.ran), batcher.queue_items) == (2, 1)
            engine.gate.set()
            assert_answers(await outcomes(tasks), {}, tokens=900)
            assert batcher.queue_items == 0

    asyncio.run(scenario())


def test_single_requests_do_not_wait_for_a_long_list() -> None:
    async def scenario() -> None:
        engine = Gated()
        async with running(engine.run) as batcher:
            first = submit(batcher, 0)
            await until(lambda: engine.ran == [[0]])
            listed = [submit(batcher, name, tokens=900, fairness_key="list") for name in range(1, 9)]
            await until(lambda: batcher.queue_items == 8)
            single = submit(batcher, 99, tokens=900, fairness_key="single")
            await until(lambda: batcher.queue_items == 9)
            engine.gate.set()
            await outcomes([first, *listed, single])
        assert engine.ran[:4] == [[0], [1], [99], [2]]

    asyncio.run(scenario())


def test_without_an_engine_queued_work_fails_as_unavailable() -> None:
    async def scenario() -> None:
        async with running(explode(EngineRestarting("gone"))) as batcher:
            results = await outcomes([submit(batcher, name) for name in range(3)])
            assert [type(result) for result in results] == [EngineRestarting] * 3

    asyncio.run(scenario())
