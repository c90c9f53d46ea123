"""The one owner of the waiting list. A batch leaves when an engine stream is free; there is no timer."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from service.engine.queue import Answered, FairQueue, Waiting
from tinyrm.batching import padded_cost
from tinyrm.encoding import Encoding
from tinyrm.engines.base import EngineInfo
from tinyrm.errors import DeadlineExceeded, EngineError, EngineFailed, Overloaded, ShuttingDown, Unavailable

log = structlog.get_logger("tinyrm")


# How full the queue may be for the items of a list to enter it: single requests have to find room as well.
ROOM_SHARE = 0.5
# An engine that slows down makes the estimates wrong with which work was accepted; nobody waits for longer than this.
MOST_TIMES_LATE = 2


@dataclass(frozen=True, slots=True)
class Ran:
    """Label logits [readings, 2], and the seconds the engine itself took."""

    logits: NDArray[np.float32]
    seconds: float


Run = Callable[[Sequence[Encoding]], Awaitable[Ran]]


@dataclass(slots=True)
class BatchReport:
    """What one engine run did, for metrics."""

    lengths: list[int]
    padded_tokens: int
    run_s: float
    failed: bool = False

    @property
    def real_tokens(self) -> int:
        return sum(self.lengths)


@dataclass
class Batcher:
    """Runs `run` on batch after batch, `engine.runs_in_flight` at once.

    on_batch: told of every run. max_batch_tokens: 0 takes the engine's. tokens_per_s: of one run, to begin with; kept
    up to date. max_wait_s: work that would wait longer is refused, and accepted work is given up
    after twice that. Every accepted item gets exactly one answer or error.
    """

    run: Run
    engine: EngineInfo
    max_queue_tokens: int
    max_wait_s: float = math.inf
    on_batch: Callable[[BatchReport], None] = lambda _: None
    max_batch_tokens: int = 0
    tokens_per_s: float = 0.0
    _queue: FairQueue = field(init=False)
    _running: set[Waiting] = field(default_factory=set)
    _runs: "set[asyncio.Task[None]]" = field(default_factory=set)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _is_filling: bool = False
    _closing: bool = False

    def __post_init__(self) -> None:
        self.max_batch_tokens = self.max_batch_tokens or self.engine.max_batch_tokens
        self._queue = FairQueue(self.max_batch_tokens, pads=self.engine.pads)

    @property
    def queue_items(self) -> int:
        return len(self._queue)

    @property
    def queue_tokens(self) -> int:
        return self._queue.tokens

    @property
    def is_alive(self) -> bool:
        return not self._closing

    async def submit(
        self, readings: tuple[Encoding, ...], *, flow: Hashable = None, timeout_s: float | None = None,
        patient: bool = False,
    ) -> Answered:  # fmt: skip
        """Wait for the answer, at most `timeout_s`. Items of one flow share that flow's part of the engine.

        patient: wait for room in the queue, up to `max_wait_s`, before being refused. Raises Overloaded, ShuttingDown,
        DeadlineExceeded, EngineFailed. Cancelled, or late, the work is dropped if it has not begun.
        """
        arrived = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                if patient:
                    await self._room()
                item = Waiting(readings, asyncio.get_running_loop().create_future(), arrived, flow)
                # Who is patient may be waiting for others of its own call.
                self.refuse_if_full(item.tokens, None if patient else timeout_s)
                self._queue.add(item)
                self._fill_soon()
                return await self._answer_to(item)
        except TimeoutError:
            raise DeadlineExceeded(f"not answered within the request's own {timeout_s:.3f} s; it was dropped") from None

    async def _answer_to(self, item: Waiting) -> Answered:
        if math.isinf(self.max_wait_s):
            return await item.answer
        timer = asyncio.get_running_loop().call_later(MOST_TIMES_LATE * self.max_wait_s, self._give_up, item)
        try:
            return await item.answer
        finally:
            timer.cancel()

    def _give_up(self, item: Waiting) -> None:
        """The engine became so slow that what was promised at the door does not hold. What runs is waited for."""
        if item not in self._running:
            bound_s = MOST_TIMES_LATE * self.max_wait_s
            self._fail([item], Overloaded(f"no turn within {bound_s:g} s; it was dropped, retry after Retry-After"))

    def refuse_if_full(self, more_tokens: int = 0, timeout_s: float | None = None) -> None:
        """Raise ShuttingDown, or Overloaded if `more_tokens` would not fit or wait too long: before any work."""
        if not self.is_alive:
            raise ShuttingDown("the service is shutting down; send the request to another replica")
        if self.queue_tokens and self.queue_tokens + more_tokens > self.max_queue_tokens:
            raise Overloaded(
                f"{self.queue_tokens} tokens are waiting, at most {self.max_queue_tokens} may; retry after Retry-After"
            )
        wait_s, bound_s = self.estimated_wait_s(), min(self.max_wait_s, math.inf if timeout_s is None else timeout_s)
        if wait_s > bound_s:
            raise Overloaded(f"new work would wait {wait_s:.1f} s, more than {bound_s:g} s; retry after Retry-After")

    def estimated_wait_s(self) -> float:
        """Seconds until the engine could begin with new work, at the rate of the last runs."""
        ahead = self.queue_tokens + sum(item.tokens for item in self._running) / 2
        return ahead / (self.tokens_per_s * self.engine.runs_in_flight) if self.tokens_per_s else 0.0

    async def _room(self) -> None:
        """Wait until the queue is far from its bounds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(self.max_wait_s) else self.max_wait_s):
                while self.queue_tokens and self.is_alive and not self._has_room():
                    await self._moved.wait()

    def _has_room(self) -> bool:
        full = self.queue_tokens / self.max_queue_tokens, self.estimated_wait_s() / self.max_wait_s
        return max(full) < ROOM_SHARE

    def retry_after_s(self) -> int:
        """Whole seconds until the present queue has run; at least 1."""
        return max(1, math.ceil(self.estimated_wait_s()))

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing more, let what was accepted finish; after the timeout the rest get ShuttingDown."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._runs or self.queue_items:
                    self._fill()
                    if self._runs:
                        await asyncio.wait(self._runs)
        left = [*self._running, *self._queue.clear()]
        for run in self._runs:
            run.cancel()
        self._fail(left, ShuttingDown("the service shut down before this request was answered"))

    def _fill_soon(self) -> None:
        """Not at once: what arrives together runs together."""
        if not self._is_filling and len(self._runs) < self.engine.runs_in_flight:
            self._is_filling = True
            asyncio.get_running_loop().call_soon(self._fill)

    def _fill(self) -> None:
        """Give every free stream a batch."""
        self._is_filling = False
        while len(self._runs) < self.engine.runs_in_flight and self.queue_items:
            batch = self._queue.take()
            if batch:
                run = asyncio.get_running_loop().create_task(self._answer(batch))
                self._runs.add(run)
                run.add_done_callback(self._on_end)

    def _on_end(self, run: "asyncio.Task[None]") -> None:
        self._runs.discard(run)
        self._fill()

    async def _answer(self, batch: list[Waiting]) -> None:
        self._running.update(batch)
        try:
            await self._run(batch)
        finally:
            self._running.difference_update(batch)
            self._moved.set()
            self._moved = asyncio.Event()

    async def _run(self, batch: list[Waiting]) -> None:
        """Run a batch and give each item its logits. If a batch fails, its items run alone: only the bad one fails."""
        started = time.perf_counter()
        try:
            ran = await self._run_checked([reading for item in batch for reading in item.readings])
        except Unavailable as error:
            self._fail(batch, error)
        except EngineError as error:
            log.error("engine run failed", items=len(batch), reason=str(error))
            self._report(batch, time.perf_counter() - started, failed=True)
            if len(batch) == 1:
                self._fail(batch, error)
                return
            for item in batch:
                if not item.is_abandoned:
                    await self._run([item])
        else:
            self._learn_rate(batch, time.perf_counter() - started)
            self._deliver(batch, ran, started)
            # After those who have their answer now.
            asyncio.get_running_loop().call_soon(self._report, batch, ran.seconds)

    async def _run_checked(self, readings: Sequence[Encoding]) -> Ran:
        """Raises EngineError or Unavailable alone: any other kind would leave the batch waiting for ever."""
        try:
            ran = await self.run(readings)
        except (EngineError, Unavailable):
            raise
        except Exception as error:
            raise EngineFailed(f"the engine raised {type(error).__name__}: {error}") from error
        if np.shape(ran.logits) != (len(readings), 2):
            raise EngineFailed(f"the engine returned {np.shape(ran.logits)} for {len(readings)} readings of two logits")
        return ran

    def _deliver(self, batch: list[Waiting], ran: Ran, started: float) -> None:
        row = 0
        for item in batch:
            rows = ran.logits[row : row + len(item.readings)]
            row += len(item.readings)
            if not item.answer.done():
                item.answer.set_result(Answered(rows, started - item.arrived, ran.seconds))

    def _fail(self, items: Iterable[Waiting], error: Exception) -> None:
        for item in items:
            if not item.answer.done():
                item.answer.set_exception(error)

    def _learn_rate(self, batch: list[Waiting], seconds: float) -> None:
        rate = sum(item.tokens for item in batch) / max(seconds, 1e-6)
        self.tokens_per_s = rate if not self.tokens_per_s else 0.9 * self.tokens_per_s + 0.1 * rate

    def _report(self, batch: list[Waiting], run_s: float, *, failed: bool = False) -> None:
        lengths = [len(reading) for item in batch for reading in item.readings]
        padded = padded_cost(lengths, pads=self.engine.pads, length_multiple=self.engine.length_multiple)
        self.on_batch(BatchReport(lengths, padded, run_s, failed))
