"""One owner of the waiting list. A batch leaves when the engine is free; there is no timer."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from tinyrm.batch import padded_cost
from tinyrm.encoding import Encoding
from tinyrm.errors import EngineError, EngineFailed, Overloaded, ShuttingDown

log = structlog.get_logger("tinyrm")

Run = Callable[[Sequence[Encoding]], NDArray[np.float32]]

# How much longer than its shorter neighbours the longest reading of a batch may make the batch.
MAX_PADDING_SHARE = 0.2


@dataclass(slots=True, eq=False)
class Waiting:
    """Readings that belong together (both orders of one comparison), and who waits for them."""

    readings: tuple[Encoding, ...]
    answer: "asyncio.Future[Answered]"
    arrived: float
    longest: int = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.longest = max(map(len, self.readings))
        self.tokens = sum(map(len, self.readings))

    @property
    def is_abandoned(self) -> bool:
        return self.answer.done()


@dataclass(frozen=True, slots=True)
class Answered:
    """Label logits [readings, 2], and how long they waited and ran."""

    logits: NDArray[np.float32]
    queue_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """The next batch, what is left waiting, and what nobody waits for any more."""

    batch: list[Waiting]
    rest: list[Waiting]
    abandoned: list[Waiting]


def take_batch(waiting: Sequence[Waiting], max_batch_tokens: int) -> Taken:
    """Choose the next batch: the oldest item and those nearest to it in length.

    The oldest always goes, so nobody starves. Others join while the padded batch stays within the budget and
    little of it is padding. An item above the budget goes alone.
    """
    alive = [item for item in waiting if not item.is_abandoned]
    abandoned = [item for item in waiting if item.is_abandoned]
    if not alive:
        return Taken([], [], abandoned)
    oldest = alive[0]
    batch = [oldest]
    # Running totals: with ten thousand items waiting, adding up each candidate batch anew would hold up the event loop.
    rows, tokens, longest = len(oldest.readings), oldest.tokens, oldest.longest
    for item in sorted(alive[1:], key=lambda other: abs(other.longest - oldest.longest)):
        joined = rows + len(item.readings), tokens + item.tokens, max(longest, item.longest)
        if _fits(*joined, max_batch_tokens):
            batch.append(item)
            rows, tokens, longest = joined
    chosen = set(map(id, batch))
    return Taken(batch, [item for item in alive if id(item) not in chosen], abandoned)


def _fits(rows: int, tokens: int, longest: int, max_batch_tokens: int) -> bool:
    cost = rows * longest
    return cost <= max_batch_tokens and cost - tokens <= MAX_PADDING_SHARE * cost


@dataclass(slots=True)
class BatchReport:
    """What one engine run did, for metrics."""

    items: int
    real_tokens: int
    padded_tokens: int
    run_s: float
    failed: bool = False


@dataclass
class Batcher:
    """Runs `run` on one thread, batch after batch.

    run: readings -> logits [readings, 2], blocking. on_batch: told of every run. step: as of the engine, for counting
    its padding. Every accepted item gets exactly one answer or error.
    """

    run: Run
    max_batch_tokens: int
    max_queue_tokens: int
    on_batch: Callable[[BatchReport], None] = lambda _: None
    step: int = 0
    tokens_per_s: float = 0.0
    queue_tokens: int = 0
    _waiting: list[Waiting] = field(default_factory=list)
    _running: list[Waiting] = field(default_factory=list)
    _work: asyncio.Event = field(default_factory=asyncio.Event)
    _closing: bool = False
    _task: "asyncio.Task[None] | None" = None

    @property
    def queue_items(self) -> int:
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done() and not self._closing

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="batcher")

    async def submit(self, readings: tuple[Encoding, ...]) -> Answered:
        """Wait for the answer. Raises Overloaded at once when the queue is full, ShuttingDown, EngineFailed."""
        item = Waiting(readings, asyncio.get_running_loop().create_future(), time.perf_counter())
        self.refuse_if_full(item.tokens)
        self._waiting.append(item)
        self.queue_tokens += item.tokens
        self._work.set()
        return await item.answer

    def refuse_if_full(self, more_tokens: int = 0) -> None:
        """Raise ShuttingDown, or Overloaded if `more_tokens` would not fit: before any work is spent on them."""
        if not self.is_alive:
            raise ShuttingDown("the service is shutting down; send the request to another replica")
        if self.queue_tokens + more_tokens > self.max_queue_tokens:
            raise Overloaded(
                f"{self.queue_tokens} tokens are waiting, at most {self.max_queue_tokens} may; retry after Retry-After"
            )

    def retry_after_s(self) -> int:
        """Whole seconds until the present queue has run, at the rate of the last batches; at least 1."""
        return max(1, math.ceil(self.queue_tokens / self.tokens_per_s)) if self.tokens_per_s else 1

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing more, let what was accepted finish; after the timeout the rest get ShuttingDown."""
        self._closing = True
        self._work.set()
        if self._task:
            await asyncio.wait([self._task], timeout=timeout_s)
            self._task.cancel()
        self._fail(
            [*self._running, *self._waiting], ShuttingDown("the service shut down before this request was answered")
        )

    async def _serve(self) -> None:
        engine_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        try:
            while self._waiting or not self._closing:
                self._work.clear()
                taken = take_batch(self._waiting, self.max_batch_tokens)
                self._waiting = taken.rest
                self.queue_tokens -= sum(item.tokens for item in (*taken.batch, *taken.abandoned))
                if taken.batch:
                    self._running = taken.batch
                    await self._answer(taken.batch, engine_thread)
                    self._running = []
                elif not self._closing:
                    await self._work.wait()
        finally:
            # Waiting here for a run that outlasts the drain would hold up the event loop, and with it everybody's 503.
            engine_thread.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, batch: list[Waiting], engine_thread: ThreadPoolExecutor) -> None:
        """Run a batch and give each item its logits. If a batch fails, its items run alone: only the bad one fails."""
        started = time.perf_counter()
        try:
            readings = [reading for item in batch for reading in item.readings]
            logits = await asyncio.get_running_loop().run_in_executor(engine_thread, self._run_checked, readings)
        except EngineError as error:
            log.error("engine run failed", items=len(batch), reason=str(error))
            self._report(batch, time.perf_counter() - started, failed=True)
            if len(batch) == 1:
                self._fail(batch, error)
                return
            for item in batch:
                await self._answer([item], engine_thread)
        else:
            run_s = time.perf_counter() - started
            self._report(batch, run_s, failed=False)
            self._deliver(batch, logits, started, run_s)

    def _run_checked(self, readings: Sequence[Encoding]) -> NDArray[np.float32]:
        """On the engine's thread. Raises EngineError alone: any other kind would end the loop and leave all waiting."""
        try:
            logits = self.run(readings)
        except EngineError:
            raise
        except Exception as error:
            raise EngineFailed(f"the engine raised {type(error).__name__}: {error}") from error
        if np.shape(logits) != (len(readings), 2):
            raise EngineFailed(f"the engine returned {np.shape(logits)} for {len(readings)} readings of two logits")
        return logits

    def _deliver(self, batch: list[Waiting], logits: NDArray[np.float32], started: float, run_s: float) -> None:
        row = 0
        for item in batch:
            rows = logits[row : row + len(item.readings)]
            row += len(item.readings)
            if not item.answer.done():
                item.answer.set_result(Answered(rows, started - item.arrived, run_s))

    def _fail(self, items: list[Waiting], error: Exception) -> None:
        for item in items:
            if not item.answer.done():
                item.answer.set_exception(error)

    def _report(self, batch: list[Waiting], run_s: float, *, failed: bool) -> None:
        lengths = [len(reading) for item in batch for reading in item.readings]
        if not failed:
            rate = sum(lengths) / max(run_s, 1e-6)
            self.tokens_per_s = rate if not self.tokens_per_s else 0.8 * self.tokens_per_s + 0.2 * rate
        self.on_batch(BatchReport(len(lengths), sum(lengths), padded_cost(lengths, self.step), run_s, failed))
