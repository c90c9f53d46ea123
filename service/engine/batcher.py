"""Dynamic batching: a batch starts whenever the engine can take one. No timer delays it."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
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


# Items of a list enter the queue only while it is less full than this, so that single requests find room as well.
ROOM_SHARE = 0.5
# Upper bound on the wait in the queue, as a multiple of max_wait_s: the estimate at admission is too low if the engine
# slows down afterwards.
MAX_TIMES_LATE = 2

RunEngine = Callable[[Sequence[Encoding]], Awaitable[BatchOutput]]


@dataclass
class Batcher:
    """A queue that feeds an engine with batches. Every accepted item gets exactly one result or error.

    run_engine: returns the logits of a batch, such as `EngineProcess.run`.
    engine: how many runs are in flight at once, and what a batch may hold.
    max_wait_s: work that would wait longer is refused; accepted work fails after twice that.
    on_batch: called with a report of every run.
    max_batch_tokens: 0 takes the engine's own.
    tokens_per_s: initial rate of one run; each run updates it.
    """

    run_engine: RunEngine
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
        """Queue sequences and return their result. If the caller is cancelled or times out, waiting work is dropped.

        fairness_key: items with the same key get one share of the engine together.
        timeout_s: limit of the whole call.
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
                # An item that waited for room is checked without the timeout: the load may be of its own call.
                self.refuse_if_full(item.tokens, None if wait_for_room else timeout_s)
                self._queue.add(item)
                if not self._is_starting and len(self._runs) < self.engine.runs_in_flight:
                    # Deferred, so that items that arrive together run together.
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
            raise DeadlineExceeded(
                f"no result within the request's own time limit of {timeout_s:.3f} s; it was dropped"
            ) from None

    def refuse_if_full(self, more_tokens: int = 0, timeout_s: float | None = None) -> None:
        """Raise ShuttingDown, or Overloaded if work would not fit into the queue or would wait too long.

        more_tokens: size of the work; 0 if it is not known yet.
        timeout_s: time limit of the request.
        """
        if self._is_closing:
            raise ShuttingDown("the service is shutting down; send the request to another replica")
        if self.queue_tokens and self.queue_tokens + more_tokens > self.max_queue_tokens:
            raise Overloaded(
                f"{self.queue_tokens} tokens are waiting, the limit is {self.max_queue_tokens}; retry after Retry-After"
            )
        wait_s, max_s = self.estimated_wait_s(), min(self.max_wait_s, math.inf if timeout_s is None else timeout_s)
        if wait_s > max_s:
            raise Overloaded(f"new work would wait {wait_s:.1f} s, more than {max_s:g} s; retry after Retry-After")

    def estimated_wait_s(self) -> float:
        """Return the seconds until the engine could begin with new work, at the rate of the last runs."""
        ahead = self.queue_tokens + sum(item.tokens for item in self._running) / 2
        return ahead / (self.tokens_per_s * self.engine.runs_in_flight) if self.tokens_per_s else 0.0

    def retry_after_s(self) -> int:
        """Return the whole seconds until the current queue has run; at least 1."""
        return max(1, math.ceil(self.estimated_wait_s()))

    async def drain(self, timeout_s: float) -> None:
        """Accept no new work and finish accepted work; after the timeout the rest fails with ShuttingDown."""
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
        for item in left:
            item.fail(ShuttingDown("the service shut down before this request had a result"))

    async def _wait_for_room(self) -> None:
        """Wait until the queue is well below its limits, at most `max_wait_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(self.max_wait_s) else self.max_wait_s):
                while self.queue_tokens and self.is_alive:
                    used = self.queue_tokens / self.max_queue_tokens, self.estimated_wait_s() / self.max_wait_s
                    if max(used) < ROOM_SHARE:
                        return
                    await self._batch_ended.wait()

    def _give_up(self, item: QueueItem) -> None:
        """Fail an item that waited too long, unless it is running."""
        if item not in self._running:
            bound_s = MAX_TIMES_LATE * self.max_wait_s
            item.fail(Overloaded(f"not started within {bound_s:g} s; it was dropped, retry after Retry-After"))

    def _start_runs(self) -> None:
        """Start runs until `runs_in_flight` are running or the queue is empty."""

        def on_end(run: "asyncio.Task[None]") -> None:
            self._runs.discard(run)
            self._start_runs()

        self._is_starting = False
        while len(self._runs) < self.engine.runs_in_flight and self.queue_items:
            batch = self._queue.take()
            if batch:
                run = asyncio.get_running_loop().create_task(self._run_batch(batch))
                self._runs.add(run)
                run.add_done_callback(on_end)

    async def _run_batch(self, batch: list[QueueItem]) -> None:
        self._running.update(batch)
        try:
            if not await self._try_batch(batch):
                # One item may be the cause, and only that one must fail.
                for item in batch:
                    if not item.is_abandoned:
                        await self._try_batch([item])
        except Exception as error:  # a bug; its items must not wait for ever
            log.exception("batch failed")
            for item in batch:
                item.fail(EngineFailed(f"the batch failed: {type(error).__name__}: {error}"))
        finally:
            self._running.difference_update(batch)
            self._batch_ended.set()
            self._batch_ended = asyncio.Event()

    async def _try_batch(self, batch: list[QueueItem]) -> bool:
        """Run a batch, and set the result or the error of each item. Return False if its items must run one by one."""
        sequences = [sequence for item in batch for sequence in item.sequences]
        lengths = [len(sequence) for sequence in sequences]
        padded = padded_cost(lengths, pads=self.engine.pads, length_multiple=self.engine.length_multiple)
        started = time.perf_counter()
        try:
            output = await self.run_engine(sequences)
            if np.shape(output.logits) != (len(sequences), 2):
                raise EngineFailed(
                    f"the engine returned {np.shape(output.logits)} for {len(sequences)} sequences of two logits"
                )
        except Unavailable as error:
            for item in batch:
                item.fail(error)
            return True
        except Exception as error:  # noqa: BLE001  # any other kind is a failure of the engine
            failure: EngineError = EngineFailed(f"the engine raised {type(error).__name__}: {error}")
            if isinstance(error, EngineError):
                failure = error
            log.error("engine run failed", items=len(batch), reason=str(failure))
            self.on_batch(BatchReport(lengths, padded, time.perf_counter() - started, failed=True))
            if len(batch) > 1:
                return False
            batch[0].fail(failure)
            return True
        rate = sum(lengths) / max(time.perf_counter() - started, 1e-6)
        self.tokens_per_s = 0.9 * self.tokens_per_s + 0.1 * rate if self.tokens_per_s else rate
        row = 0
        for item in batch:
            logits = output.logits[row : row + len(item.sequences)]
            row += len(item.sequences)
            item.complete(EngineResult(logits, started - item.arrived_s, output.seconds))
        # Deferred: callers with a result continue first.
        asyncio.get_running_loop().call_soon(self.on_batch, BatchReport(lengths, padded, output.seconds))
        return True
