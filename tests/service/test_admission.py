"""Test under simulated load, in virtual time, which work is admitted, refused and ready in time."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pytest

from service.engine.batcher import Batcher
from service.engine.types import BatchOutput
from tests.support.virtual_time import run_in_virtual_time
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.base import EngineInfo
from tinyrm.errors import Overloaded, TinyRMError

# Like a small machine: 8 comparisons of 500 tokens a second, two of them in a run.
TOKENS_PER_S, ITEM_TOKENS = 4000.0, 500
CAPACITY = TOKENS_PER_S / ITEM_TOKENS
MAX_WAIT_S = 10.0


@dataclass
class Engine:
    """Takes as long as its tokens at TOKENS_PER_S, give or take `noise`."""

    noise: float = 0.0
    ran: list[str] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    async def run(self, sequences: Sequence[Encoding]) -> BatchOutput:
        seconds = sum(map(len, sequences)) / TOKENS_PER_S
        await asyncio.sleep(seconds * (1 + self._random.uniform(-self.noise, self.noise)))
        return BatchOutput(np.zeros((len(sequences), 2), dtype=np.float32), seconds)


@asynccontextmanager
async def running(
    engine: Engine, *, pads: bool = False, max_queue_tokens: int = 1_048_576, **options: Any
) -> AsyncIterator[Batcher]:
    info = EngineInfo("simulated", "cpu", "fp32", max_batch_tokens=1024, runs_in_flight=1, pads=pads)
    clock = asyncio.get_running_loop().time
    batcher = Batcher(engine.run, info, max_queue_tokens, MAX_WAIT_S, tokens_per_s=TOKENS_PER_S, clock=clock, **options)
    yield batcher
    await batcher.drain(1e9)


def submit(batcher: Batcher, key: Hashable = None, *, tokens: int = ITEM_TOKENS, **options: Any) -> "asyncio.Task[str]":
    """Submit one comparison. Its result is the type of its error, or `ready`."""

    async def outcome() -> str:
        half = Encoding(np.zeros(tokens // 2, dtype=np.int64), Truncation())
        try:
            await batcher.submit((half, half), fairness_key=key or object(), **options)
        except TinyRMError as error:
            return error.type
        return "ready"

    return asyncio.create_task(outcome())


async def arrivals(rate: float, seconds: float) -> AsyncIterator[None]:
    """Yield at random times, at so many a second."""
    draw = random.Random(1)
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        yield
        await asyncio.sleep(draw.expovariate(rate))


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("deadline_s", [None, 2.0, 0.5])
def test_five_times_the_capacity_is_answered_in_time_at_nearly_the_capacity(
    deadline_s: float | None, pads: bool
) -> None:
    async def scenario() -> Counter[str]:
        async with running(Engine(noise=0.3), pads=pads) as batcher:
            tasks = [submit(batcher, timeout_s=deadline_s) async for _ in arrivals(5 * CAPACITY, 60)]
            return Counter(await asyncio.gather(*tasks))

    counts = run_in_virtual_time(scenario())
    assert counts["ready"] >= 0.85 * 60 * CAPACITY, counts
    assert counts["ready"] <= (60 + MAX_WAIT_S + 1) * CAPACITY
    assert counts["deadline_exceeded"] <= 0.2 * counts["ready"], "the others are refused at once"
    assert set(counts) <= {"ready", "overloaded", "deadline_exceeded"}


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_an_engine_that_changes_its_speed_still_works_in_time(factor: float) -> None:
    """The estimate of its rate is wrong at first, and idle service is where it is corrected."""

    async def scenario() -> Counter[str]:
        async with running(Engine(noise=0.3)) as batcher:
            batcher.tokens_per_s = factor * TOKENS_PER_S
            early = [submit(batcher, timeout_s=1.0) async for _ in arrivals(5 * CAPACITY, 10)]
            later = [submit(batcher, timeout_s=1.0) async for _ in arrivals(5 * CAPACITY, 30)]
            await asyncio.gather(*early)
            return Counter(await asyncio.gather(*later))

    assert run_in_virtual_time(scenario())["ready"] >= 0.8 * 30 * CAPACITY


def test_a_list_that_takes_far_longer_than_the_wait_that_is_allowed_is_scored_to_its_end() -> None:
    async def scenario() -> tuple[Counter[str], float, Counter[str]]:
        async with running(Engine(noise=0.3)) as batcher:
            listed = [submit(batcher, "list", tokens=4000, wait_for_room=True) for _ in range(256)]
            singles = [submit(batcher, timeout_s=5.0) async for _ in arrivals(CAPACITY / 4, 30)]
            waits_s = batcher.estimated_wait_s("somebody else")
            return Counter(await asyncio.gather(*listed)), waits_s, Counter(await asyncio.gather(*singles))

    listed, waits_s, singles = run_in_virtual_time(scenario())
    assert listed == {"ready": 256}
    assert waits_s < MAX_WAIT_S
    assert set(singles) == {"ready"}, "single requests find room and have their turn beside the list"


def test_lists_of_one_client_do_not_refuse_the_requests_of_another() -> None:
    async def scenario() -> tuple[Counter[str], Counter[str]]:
        async with running(Engine(noise=0.3)) as batcher:
            listed = [submit(batcher, "greedy", wait_for_room=True) for _ in range(8 * 400)]
            singles = [submit(batcher, "small", timeout_s=5.0) async for _ in arrivals(CAPACITY / 4, 30)]
            counts = Counter(await asyncio.gather(*singles))
            for task in listed:
                task.cancel()
            return counts, Counter([task.result() for task in listed if task.done() and not task.cancelled()])

    singles, listed = run_in_virtual_time(scenario())
    assert set(singles) == {"ready"}
    assert listed["ready"] > 30 * CAPACITY / 2, "and the list uses what they leave"


@pytest.mark.parametrize("max_queue_tokens", [40_000, 1_048_576])
def test_a_flood_of_single_requests_refuses_itself_and_no_other_client(max_queue_tokens: int) -> None:
    """By its wait, and by the tokens of a queue that is too small for it."""

    async def scenario() -> tuple[Counter[str], Counter[str]]:
        async with running(Engine(noise=0.3), max_queue_tokens=max_queue_tokens) as batcher:
            flood = [submit(batcher, "greedy") for _ in range(400)]
            singles = [submit(batcher, "small", timeout_s=5.0) async for _ in arrivals(CAPACITY / 4, 10)]
            return Counter(await asyncio.gather(*flood)), Counter(await asyncio.gather(*singles))

    flood, singles = run_in_virtual_time(scenario())
    assert flood["overloaded"] > 200
    assert set(singles) == {"ready"}


def test_the_wait_of_a_key_with_work_in_the_queue_counts_that_work_and_its_share_of_the_engine() -> None:
    async def scenario() -> None:
        async with running(Engine()) as batcher:
            tasks = [submit(batcher, key, tokens=400) for key in ["a"] * 20 + ["b"] * 5]
            await asyncio.sleep(0)
            waits_s = [batcher.estimated_wait_s(key) for key in ("a", "b", "c")]
            # One of each other key comes before c; b waits for its own five and as many of a.
            assert waits_s == [pytest.approx(25 * 0.1), pytest.approx(10 * 0.1), pytest.approx(2 * 0.1)]
            assert batcher.estimated_total_s() == pytest.approx(25 * 0.1)
            await asyncio.gather(*tasks)

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("is_listed", [False, True])
def test_cancelled_work_counts_no_more(is_listed: bool) -> None:
    async def scenario() -> None:
        async with running(Engine()) as batcher:
            first = submit(batcher)
            await asyncio.sleep(0.01)
            left = [submit(batcher, "left", wait_for_room=is_listed) for _ in range(60)]
            await asyncio.sleep(0.01)
            assert batcher.queue_tokens == 60 * ITEM_TOKENS
            for task in left:
                task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert (batcher.queue_items, batcher.queue_tokens) == (0, 0)
            assert batcher.estimated_wait_s() < ITEM_TOKENS / TOKENS_PER_S
            batcher.refuse_if_full(1, timeout_s=1.0)
            assert await first == "ready"

    run_in_virtual_time(scenario())


def test_work_that_cannot_be_ready_in_time_does_not_run_while_other_work_waits() -> None:
    """The engine turns out to be slower than expected after work was admitted."""

    async def scenario() -> tuple[list[str], float]:
        engine = Engine()
        async with running(engine) as batcher:
            first = submit(batcher, tokens=1000)
            await asyncio.sleep(0.01)
            tight = submit(batcher, tokens=1000, timeout_s=0.7)
            patient = submit(batcher, tokens=1000)
            await asyncio.sleep(0.01)
            batcher.tokens_per_s = TOKENS_PER_S / 4
            outcomes = await asyncio.gather(first, tight, patient)
            return outcomes, asyncio.get_running_loop().time()

    outcomes, seconds = run_in_virtual_time(scenario())
    assert outcomes == ["ready", "deadline_exceeded", "ready"]
    assert seconds == pytest.approx(0.5), "two runs and not three"


def test_an_idle_engine_runs_work_whose_deadline_it_would_probably_miss() -> None:
    """Otherwise an estimate that is too low would never be corrected."""

    async def scenario() -> None:
        async with running(Engine()) as batcher:
            batcher.tokens_per_s = TOKENS_PER_S / 100
            for _ in range(3):
                assert await submit(batcher, timeout_s=0.5) == "ready"

    run_in_virtual_time(scenario())


def test_a_batch_ends_before_the_first_of_its_items_would_be_late() -> None:
    async def scenario() -> None:
        async with running(Engine()) as batcher:
            first = submit(batcher, tokens=400)
            await asyncio.sleep(0)
            tasks = [submit(batcher, tokens=400, timeout_s=0.3), submit(batcher, tokens=400)]
            assert await asyncio.gather(first, *tasks) == ["ready"] * 3

    run_in_virtual_time(scenario())


def test_the_wait_falls_while_a_run_goes_on() -> None:
    async def scenario() -> None:
        async with running(Engine()) as batcher:
            task = submit(batcher, tokens=1000)
            for passed_s in (0.0, 0.1, 0.2):
                await asyncio.sleep(0.1 if passed_s else 0.001)
                assert batcher.estimated_wait_s() == pytest.approx(0.25 - passed_s, abs=0.002)
            assert await task == "ready"

    run_in_virtual_time(scenario())


def test_lists_of_many_keys_fill_half_of_the_queue_at_most_and_share_it() -> None:
    async def scenario() -> None:
        engine = Engine()
        async with running(engine, max_queue_tokens=20_000) as batcher:
            listed = {key: [submit(batcher, key, wait_for_room=True) for _ in range(30)] for key in range(1, 9)}
            await asyncio.sleep(0)
            assert batcher._queue.tokens <= 10_000
            await asyncio.sleep(8 * 8 * ITEM_TOKENS / TOKENS_PER_S)
            done = [sum(task.done() for task in tasks) for tasks in listed.values()]
            assert max(done) - min(done) <= 4
            single = submit(batcher, "single")
            assert await single == "ready"
            assert Counter(await asyncio.gather(*chain.from_iterable(listed.values()))) == {"ready": 240}

    run_in_virtual_time(scenario())


def test_drain_finishes_lists_that_wait_before_the_queue() -> None:
    async def scenario() -> None:
        engine = Engine()
        async with running(engine, max_queue_tokens=2000) as batcher:
            listed = [submit(batcher, "list", wait_for_room=True) for _ in range(30)]
            await asyncio.sleep(0)
            await batcher.drain(60)
            assert Counter(await asyncio.gather(*listed)) == {"ready": 30}
            assert await submit(batcher, wait_for_room=True) == "shutting_down"

    run_in_virtual_time(scenario())


def test_drain_that_takes_too_long_fails_lists_that_wait_before_the_queue() -> None:
    async def scenario() -> None:
        engine = Engine()
        async with running(engine, max_queue_tokens=2000) as batcher:
            listed = [submit(batcher, "list", wait_for_room=True) for _ in range(30)]
            await asyncio.sleep(0)
            await batcher.drain(1)
            counts = Counter(await asyncio.gather(*listed))
            assert counts["shutting_down"] > 15
            assert set(counts) == {"ready", "shutting_down"}

    run_in_virtual_time(scenario())


def test_the_refusal_of_a_deadline_says_what_would_have_been_too_late() -> None:
    async def scenario() -> None:
        async with running(Engine()) as batcher:
            tasks = [submit(batcher) for _ in range(8)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match=r"would be ready in 1\.0 s, which may be more than 1 s"):
                batcher.refuse_if_full(0, timeout_s=1.0)
            await asyncio.gather(*tasks)

    run_in_virtual_time(scenario())
