"""The owner of the queue: it starts a batch whenever the engine can take one. There is no timer."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import structlog

from service.engine.queue import FairQueue, QueueItem
from service.engine.types import BatchOutput, BatchReport, EngineResult
from tinyrm.batching import padded_cost
from tinyrm.encoding import Encoding
from tinyrm.engines.base import EngineInfo
from tinyrm.errors import DeadlineExceeded, EngineError, EngineFailed, Overloaded, ShuttingDown, Unavailable

log = structlog.get_logger("tinyrm")


# How full the queue may be for the items of a list to enter it: single requests must find room as well.
ROOM_SHARE = 0.5
# Upper bound on the wait in the queue, as a multiple of max_wait_s: the estimate at admission is too low if the engine
# slows down.
MAX_TIMES_LATE = 2

Run = Callable[[Sequence[Encoding]], Awaitable[BatchOutput]]


@dataclass
class Batcher:
    """Runs batch after batch, `engine.runs_in_flight` at once. Every accepted item gets exactly one result or error.

    run: the engine.
    max_wait_s: work that would wait longer is refused, and accepted work is given up after twice that.
    on_batch: called with a report of every run.
    max_batch_tokens: 0 takes the engine's.
    tokens_per_s: the engine's rate in one run, to begin with; each run updates it.
    """

    run: Run
    engine: EngineInfo
    max_queue_tokens: int
    max_wait_s: float = math.inf
    on_batch: Callable[[BatchReport], None] = lambda _: None
    max_batch_tokens: int = 0
    tokens_per_s: float = 0.0
    _queue: FairQueue = field(init=False)
    _running: set[QueueItem] = field(default_factory=set)
    _runs: "set[asyncio.Task[None]]" = field(default_factory=set)
    _batch_ended: asyncio.Event = field(default_factory=asyncio.Event)
    _is_starting: bool = False
    _is_closing: bool = False

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
        return not self._is_closing

    async def submit(
        self,
        sequences: tuple[Encoding, ...],
        *,
        fairness_key: Hashable = None,
        timeout_s: float | None = None,
        wait_for_room: bool = False,
    ) -> EngineResult:
        """Queue sequences and return their result. If the caller is cancelled or late, work not yet begun is dropped.

        fairness_key: items with the same key share one part of the engine.
        timeout_s: of the whole call.
        wait_for_room: wait for room in the queue, up to `max_wait_s`, before the work is refused.

        Raises Overloaded, ShuttingDown, DeadlineExceeded, EngineFailed.
        """
        arrived_s = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                if wait_for_room:
                    await self._wait_for_room()
                item = QueueItem(sequences, loop.create_future(), arrived_s, fairness_key)
                # An item that waited for room may have waited for others of its own call.
                self.refuse_if_full(item.tokens, None if wait_for_room else timeout_s)
                self._queue.add(item)
                if not self._is_starting and len(self._runs) < self.engine.runs_in_flight:
                    # Not at once: what arrives together runs together.
                    self._is_starting = True
                    loop.call_soon(self._start_runs)
                if math.isinf(self.max_wait_s):
                    return await item.result
                timer = loop.call_later(MAX_TIMES_LATE * self.max_wait_s, self._give_up, item)
                try:
                    return await item.result
                finally:
                    timer.cancel()
        except TimeoutError:
            raise DeadlineExceeded(f"not answered within the request's own {timeout_s:.3f} s; it was dropped") from None

    def refuse_if_full(self, more_tokens: int = 0, timeout_s: float | None = None) -> None:
        """Raise ShuttingDown, or Overloaded if `more_tokens` would not fit or wait too long: before any work."""
        if self._is_closing:
            raise ShuttingDown("the service is shutting down; send the request to another replica")
        if self.queue_tokens and self.queue_tokens + more_tokens > self.max_queue_tokens:
            raise Overloaded(
                f"{self.queue_tokens} tokens are waiting, at most {self.max_queue_tokens} may; retry after Retry-After"
            )
        wait_s, max_s = self.estimated_wait_s(), min(self.max_wait_s, math.inf if timeout_s is None else timeout_s)
        if wait_s > max_s:
            raise Overloaded(f"new work would wait {wait_s:.1f} s, more than {max_s:g} s; retry after Retry-After")

    def estimated_wait_s(self) -> float:
        """Return seconds until the engine could begin with new work, at the rate of the last runs."""
        ahead = self.queue_tokens + sum(item.tokens for item in self._running) / 2
        return ahead / (self.tokens_per_s * self.engine.runs_in_flight) if self.tokens_per_s else 0.0

    def retry_after_s(self) -> int:
        """Return whole seconds until the present queue has run; at least 1."""
        return max(1, math.ceil(self.estimated_wait_s()))

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing more and let accepted work finish; after the timeout the rest gets ShuttingDown."""
        self._is_closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._runs or self.queue_items:
                    self._start_runs()
                    if self._runs:
                        await asyncio.wait(self._runs)
        left = [*self._running, *self._queue.clear()]
        for run in self._runs:
            run.cancel()
        _fail(left, ShuttingDown("the service shut down before this request was answered"))

    async def _wait_for_room(self) -> None:
        """Wait until the queue is far from its limits, or for `max_wait_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(self.max_wait_s) else self.max_wait_s):
                while self.queue_tokens and self.is_alive:
                    used = self.queue_tokens / self.max_queue_tokens, self.estimated_wait_s() / self.max_wait_s
                    if max(used) < ROOM_SHARE:
                        return
                    await self._batch_ended.wait()

    def _give_up(self, item: QueueItem) -> None:
        """Fail an item whose wait exceeded the bound, unless it is running already."""
        if item not in self._running:
            bound_s = MAX_TIMES_LATE * self.max_wait_s
            _fail([item], Overloaded(f"no turn within {bound_s:g} s; it was dropped, retry after Retry-After"))

    def _start_runs(self) -> None:
        """Give the engine as many batches as it takes at once."""
        self._is_starting = False
        while len(self._runs) < self.engine.runs_in_flight and self.queue_items:
            batch = self._queue.take()
            if batch:
                run = asyncio.get_running_loop().create_task(self._run_batch(batch))
                self._runs.add(run)
                run.add_done_callback(self._on_run_end)

    def _on_run_end(self, run: "asyncio.Task[None]") -> None:
        self._runs.discard(run)
        self._start_runs()

    async def _run_batch(self, batch: list[QueueItem]) -> None:
        self._running.update(batch)
        try:
            is_done = await self._try_batch(batch)
            if not is_done:  # only the bad item must fail
                for item in batch:
                    if not item.is_abandoned:
                        await self._try_batch([item])
        except Exception as error:  # a bug of ours: no item may wait for ever because of it
            log.exception("batch failed")
            _fail(batch, EngineFailed(f"the batch failed: {type(error).__name__}: {error}"))
        finally:
            self._running.difference_update(batch)
            self._batch_ended.set()
            self._batch_ended = asyncio.Event()

    async def _try_batch(self, batch: list[QueueItem]) -> bool:
        """Run a batch, and give each item its logits or its error. Return False if its items must run alone instead."""
        sequences = [sequence for item in batch for sequence in item.sequences]
        lengths = [len(sequence) for sequence in sequences]
        padded = padded_cost(lengths, pads=self.engine.pads, length_multiple=self.engine.length_multiple)
        started = time.perf_counter()
        try:
            output = await self.run(sequences)
            if np.shape(output.logits) != (len(sequences), 2):
                raise EngineFailed(
                    f"the engine returned {np.shape(output.logits)} for {len(sequences)} sequences of two logits"
                )
        except Unavailable as error:
            _fail(batch, error)
            return True
        except Exception as error:  # noqa: BLE001  # any other kind is the engine's failure, too
            failure: EngineError = EngineFailed(f"the engine raised {type(error).__name__}: {error}")
            if isinstance(error, EngineError):
                failure = error
            log.error("engine run failed", items=len(batch), reason=str(failure))
            self.on_batch(BatchReport(lengths, padded, time.perf_counter() - started, failed=True))
            if len(batch) > 1:
                return False
            _fail(batch, failure)
            return True
        rate = sum(lengths) / max(time.perf_counter() - started, 1e-6)
        self.tokens_per_s = 0.9 * self.tokens_per_s + 0.1 * rate if self.tokens_per_s else rate
        row = 0
        for item in batch:
            logits = output.logits[row : row + len(item.sequences)]
            row += len(item.sequences)
            if not item.result.done():
                item.result.set_result(EngineResult(logits, started - item.arrived_s, output.seconds))
        # The callers that have their results now go first.
        asyncio.get_running_loop().call_soon(self.on_batch, BatchReport(lengths, padded, output.seconds))
        return True


def _fail(items: Iterable[QueueItem], error: Exception) -> None:
    for item in items:
        if not item.result.done():
            item.result.set_exception(error)
