"""Test that texts are encoded in turn, within deadlines, and that short ones never wait behind long ones."""

import asyncio
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.scoring.encode_queue import SHORT_CHARACTERS, EncodeLane, EncodeQueue
from tests.service.conftest import PAIR, Served
from tests.support.waiting import PATIENCE_S
from tinyrm.deadline import Deadline
from tinyrm.errors import DeadlineExceeded, Overloaded, ShuttingDown, TinyRMError

FOREVER = Deadline()
LONG = SHORT_CHARACTERS + 1


@dataclass
class Gated:
    """Work that is held in its thread until the gate opens."""

    gate: threading.Event = field(default_factory=threading.Event)
    begun: list[str] = field(default_factory=list)

    def work(self, name: str) -> Callable[[], str]:
        def run() -> str:
            self.begun.append(name)
            self.gate.wait(PATIENCE_S)
            return name

        return run


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # threads set no event of this loop
            await asyncio.sleep(0.001)


@dataclass
class Bench:
    """A lane with one thread, in which the work `first` is held."""

    lane: EncodeLane
    gated: Gated
    first: "asyncio.Task[str]"

    @classmethod
    async def make(cls) -> "Bench":
        lane, gated = EncodeLane("test", 1), Gated()
        bench = cls(lane, gated, asyncio.create_task(lane.run(gated.work("first"), LONG, "first", FOREVER)))
        await until(lambda: gated.begun == ["first"])
        return bench

    def run(
        self, name: str, key: Hashable, *, characters: int = LONG, deadline: Deadline = FOREVER
    ) -> "asyncio.Task[str]":
        return asyncio.create_task(self.lane.run(self.gated.work(name), LONG, key, deadline))

    async def end(self) -> None:
        self.gated.gate.set()
        await self.first
        self.lane.shut_down()


def test_keys_take_turns_whatever_one_of_them_has_sent_before() -> None:
    async def scenario() -> None:
        bench = await Bench.make()
        tasks = [bench.run(f"a{n}", "a") for n in range(3)]
        await asyncio.sleep(0)
        tasks += [bench.run(f"b{n}", "b") for n in range(2)]
        await asyncio.sleep(0)
        bench.gated.gate.set()
        await asyncio.gather(*tasks)
        await bench.end()
        assert bench.gated.begun == ["first", "a0", "b0", "a1", "b1", "a2"]

    asyncio.run(scenario())


def test_a_deadline_drops_what_waits_and_what_is_dropped_never_begins() -> None:
    async def scenario() -> None:
        bench = await Bench.make()
        late, patient = bench.run("late", "a", deadline=Deadline.after(0.02)), bench.run("patient", "b")
        with pytest.raises(DeadlineExceeded):
            await late
        bench.gated.gate.set()
        assert await patient == "patient"
        assert bench.gated.begun == ["first", "patient"]
        await bench.end()

    asyncio.run(scenario())


def test_a_deadline_ends_the_wait_for_work_that_has_begun() -> None:
    async def scenario() -> None:
        lane, gated = EncodeLane("test", 1), Gated()
        with pytest.raises(DeadlineExceeded):
            await lane.run(gated.work("held"), LONG, None, Deadline.after(0.02))
        assert lane.wait_s("b") > 0, "its thread is not free yet"
        later = asyncio.create_task(lane.run(gated.work("later"), LONG, None, FOREVER))
        gated.gate.set()
        assert await later == "later"
        assert lane.wait_s("b") == 0
        lane.shut_down()

    asyncio.run(scenario())


def test_cancelled_work_leaves_its_place_and_its_turn() -> None:
    async def scenario() -> None:
        bench = await Bench.make()
        waiting = [bench.run(name, name) for name in ("left", "stays", "turns away")]
        await asyncio.sleep(0)
        expected_s = bench.lane.wait_s("x")
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        assert bench.lane.wait_s("x") < expected_s, "what has left counts no more"
        bench.gated.gate.set()
        await bench.first
        waiting[2].cancel()  # perhaps just when it has its turn
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await bench.run("next", "next") == "next", "the thread is free"
        assert bench.gated.begun[:2] == ["first", "stays"]
        assert bench.lane.wait_s("x") == bench.lane.total_s() == 0
        await bench.end()

    asyncio.run(scenario())


def test_work_that_raises_frees_its_thread() -> None:
    async def scenario() -> None:
        lane = EncodeLane("test", 1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await lane.run(lambda: 1 // 0, 1, None, FOREVER)
        assert lane.wait_s("x") == 0
        lane.shut_down()

    asyncio.run(scenario())


def test_shutting_down_refuses_what_waits_and_what_comes_later() -> None:
    async def scenario() -> None:
        bench = await Bench.make()
        waiting = bench.run("waiting", "a")
        await asyncio.sleep(0)
        bench.lane.shut_down()
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await bench.lane.run(lambda: "later", 1, None, FOREVER)
        await bench.end()
        assert bench.gated.begun == ["first"]

    asyncio.run(scenario())


def test_short_texts_are_encoded_while_long_ones_fill_their_threads_and_queue() -> None:
    async def scenario() -> None:
        queue, gated = EncodeQueue(2, max_wait_s=10), Gated()
        long = [asyncio.create_task(queue.run(gated.work("long"), LONG, object(), FOREVER)) for _ in range(50)]
        await until(lambda: gated.begun == ["long"])
        for _ in range(20):
            assert await queue.run(lambda: "short", SHORT_CHARACTERS, object(), FOREVER) == "short"
        assert gated.begun == ["long"]
        gated.gate.set()
        await asyncio.gather(*long)
        queue.shut_down()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("engine_wait_s", "left_s", "refused"),
    [(0.0, None, False), (9.9, None, True), (0.0, 3600, False), (0.0, 0, True)],
)
def test_a_backlog_counts_as_wait_together_with_the_engines(
    engine_wait_s: float, left_s: float | None, refused: bool
) -> None:
    """The backlog takes about a second."""
    deadline = Deadline.after(left_s)

    async def scenario() -> None:
        queue, gated = EncodeQueue(1, max_wait_s=10), Gated()
        characters = int(queue._long.characters_per_s) // 4
        tasks = [asyncio.create_task(queue.run(gated.work("x"), characters, "greedy", FOREVER)) for _ in range(4)]
        await until(lambda: len(gated.begun) == 1)
        assert 0.5 < queue.total_s() < 1.0
        error: TinyRMError | None = None
        try:
            queue.refuse_if_busy(LONG, "greedy", deadline, lambda: engine_wait_s)
        except Overloaded as busy:
            error = busy
        assert (error is not None) == refused
        queue.refuse_if_busy(SHORT_CHARACTERS, "greedy", FOREVER, lambda: engine_wait_s)
        queue.refuse_if_busy(LONG, "another", FOREVER, lambda: 0.0)
        gated.gate.set()
        await asyncio.gather(*tasks)
        queue.shut_down()

    asyncio.run(scenario())


def test_a_short_comparison_waits_for_no_thread_beside_others_and_an_item_of_a_list_does(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_threads: list[int] = []

    async def run(work: Callable[[], Any], characters: int, *_: object) -> Any:
        in_threads.append(characters)
        return work()

    monkeypatch.setattr(served.pipeline.texts.queue, "run", run)
    with served.pipeline.active():
        assert served.client.post("/v1/compare", json=PAIR).status_code == 200
        assert not in_threads
        assert served.client.post("/v1/compare", json=PAIR | {"prompt": "x " * 2000}).status_code == 200
        assert len(in_threads) == 1
        assert served.client.post("/v1/compare/batch", json={"items": [PAIR, PAIR]}).status_code == 200
        assert len(in_threads) == 3
