"""Dynamic batching: a batch starts whenever the engine can take one. No timer delays it."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import structlog

from service.engine.queue import FairQueue, QueueItem, choose_in_turn, choose_similar_lengths
from service.engine.types import BatchOutput, BatchReport, EngineResult
from tinyrm.batching import padded_cost
from tinyrm.encoding import Encoding
from tinyrm.engines.base import EngineInfo
from tinyrm.errors import (
    NOT_ACCEPTED,
    NOT_FINISHED,
    DeadlineExceeded,
    EngineError,
    EngineFailed,
    Overloaded,
    ShuttingDown,
    Unavailable,
)

log = structlog.get_logger("tinyrm")


# Items of lists enter the queue only while it is less full than this, so that single requests find room as well.
ROOM_SHARE = 0.5
# Batches that a list has in the queue at once, for each run in flight: enough to choose items of similar length from.
# The list's other items wait before the queue.
LISTED_BATCHES = 4
# Upper bound on the wait in the queue, as a multiple of max_wait_s: the estimate at admission is too low if the engine
# slows down afterwards.
MAX_TIMES_LATE = 2
# Work must be ready this many times earlier than its deadline: the duration of a run is an estimate, and work that is
# late has cost a run for nothing.
SAFETY = 1.25

RunEngine = Callable[[Sequence[Encoding]], Awaitable[BatchOutput]]


@dataclass
class Batcher:
    """A queue that feeds an engine with batches. Every accepted item gets exactly one result or error.

    run_engine: returns the logits of a batch, such as `EngineProcess.run`.
    engine: how many runs are in flight at once, and what a batch may hold.
    max_wait_s: work that would wait longer is refused; accepted single requests fail after twice that.
    on_batch: called with a report of every run.
    max_batch_tokens: 0 takes the engine's own.
    tokens_per_s: initial rate of one run; each run updates it.
    clock: returns the seconds since some point in time.
    count_logits: returns how many logits each row of a batch has.
    """

    run_engine: RunEngine
    engine: EngineInfo
    max_queue_tokens: int
    max_wait_s: float = math.inf
    on_batch: Callable[[BatchReport], None] = lambda _: None
    max_batch_tokens: int = 0
    tokens_per_s: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    count_logits: Callable[[Sequence[Encoding]], int] = lambda _: 2
    _queue: FairQueue[QueueItem] = field(init=False)
    # Items of lists that wait their turn before the queue: fairness key -> items in the order of arrival.
    _lists: dict[Hashable, deque[QueueItem]] = field(default_factory=dict)
    _listed_tokens: int = 0
    _running: set[QueueItem] = field(default_factory=set)
    _runs: "set[asyncio.Task[None]]" = field(default_factory=set)
    # The start and the tokens of each run in progress.
    _progress: dict[object, tuple[float, int]] = field(default_factory=dict)
    _is_starting: bool = False
    _is_closing: bool = False

    def __post_init__(self) -> None:
        self.max_batch_tokens = self.max_batch_tokens or self.engine.max_batch_tokens
        choose = choose_similar_lengths if self.engine.pads else choose_in_turn
        self._queue = FairQueue(self.max_batch_tokens, choose)

    @property
    def queue_items(self) -> int:
        return len(self._queue) + sum(map(len, self._lists.values()))

    @property
    def queue_tokens(self) -> int:
        return self._queue.tokens + self._listed_tokens

    @property
    def is_full(self) -> bool:
        return self._queue.tokens >= self.max_queue_tokens

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
        wait_for_room: for work that was accepted already, such as an item of a list. It waits for room in the queue and
            is never refused because of the wait.

        Raises Overloaded, ShuttingDown, DeadlineExceeded, EngineFailed.
        """
        loop, now = asyncio.get_running_loop(), self.clock()
        deadline_s = math.inf if timeout_s is None else now + timeout_s
        item = QueueItem(sequences, loop.create_future(), now, fairness_key, deadline_s)
        timers = []
        if wait_for_room:
            self.refuse_if_closed()
            self._lists.setdefault(fairness_key, deque()).append(item)
            self._listed_tokens += item.tokens
            self._admit_listed(fairness_key)
        else:
            self.refuse_if_full(item.tokens, timeout_s, fairness_key)
            self._queue.add(item)
            if not math.isinf(self.max_wait_s):
                timers.append(loop.call_later(MAX_TIMES_LATE * self.max_wait_s, self._give_up, item))
        if timeout_s is not None:
            timers.append(loop.call_later(timeout_s, self._fail_late, item))
        if not self._is_starting and len(self._runs) < self.engine.runs_in_flight:
            # Deferred, so that items that arrive together run together.
            self._is_starting = True
            loop.call_soon(self._start_runs)
        try:
            return await item.result
        finally:
            for timer in timers:
                timer.cancel()
            if item not in self._running:
                self._drop(item)

    def refuse_if_full(
        self, more_tokens: int = 0, timeout_s: float | None = None, fairness_key: Hashable = None
    ) -> None:
        """Raise ShuttingDown, or Overloaded if work would not fit into the queue, or would not be ready in time.

        more_tokens: size of the work; 0 if it is not known yet.
        timeout_s: time limit of the request.
        fairness_key: its share of the queue decides. A key may fill as much of the queue as it leaves free, so others
            find room; and it waits for its own work, not for that of a key that has more.
        """
        self.refuse_if_closed()
        queue = self._queue
        if queue.tokens and queue.tokens_of(fairness_key) + more_tokens > self.max_queue_tokens - queue.tokens:
            raise Overloaded(
                f"{queue.tokens} tokens are waiting, the limit is {self.max_queue_tokens}, and one client may have no "
                "more than are free; retry after Retry-After"
            )
        wait_s = self.estimated_wait_s(fairness_key)
        if wait_s > self.max_wait_s:
            raise Overloaded(
                f"new work would wait {wait_s:.1f} s, more than {self.max_wait_s:g} s; retry after Retry-After"
            )
        if timeout_s is not None and wait_s:
            ready_s = wait_s + self._run_s(more_tokens)
            if SAFETY * ready_s > timeout_s:
                raise Overloaded(
                    f"new work would be ready in {ready_s:.1f} s, which may be more than {timeout_s:g} s; "
                    "retry after Retry-After"
                )

    def estimated_wait_s(self, fairness_key: Hashable = None) -> float:
        """Return the seconds until the engine could begin with new work of this key, at the rate of the last runs."""
        return self._run_s(self._queue.tokens_ahead(fairness_key) + self._tokens_left()) / self.engine.runs_in_flight

    def estimated_total_s(self) -> float:
        """Return the seconds until the engine has done all the work that waits now."""
        return self._run_s(self.queue_tokens + self._tokens_left()) / self.engine.runs_in_flight

    def retry_after_s(self) -> int:
        """Return the whole seconds until the current queue has run; at least 1."""
        return max(1, math.ceil(self._run_s(self._queue.tokens + self._tokens_left()) / self.engine.runs_in_flight))

    async def drain(self, timeout_s: float) -> None:
        """Accept no new work and finish accepted work; after the timeout the rest fails with ShuttingDown."""
        self._is_closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._runs or self.queue_items:
                    self._start_runs()
                    if self._runs:
                        await asyncio.wait(self._runs)
        left = [*self._running, *self._queue.clear(), *chain.from_iterable(self._lists.values())]
        for run in self._runs:
            run.cancel()
        for item in left:
            item.fail(ShuttingDown(NOT_FINISHED))

    def refuse_if_closed(self) -> None:
        if self._is_closing:
            raise ShuttingDown(NOT_ACCEPTED)

    def _run_s(self, tokens: float) -> float:
        """Return the seconds that one run of these tokens takes."""
        return tokens / self.tokens_per_s if self.tokens_per_s else 0.0

    def _tokens_left(self) -> float:
        """Return the tokens that the runs in progress have still to compute, at the current rate."""
        now = self.clock()
        return sum(
            max(0.0, tokens - (now - started) * self.tokens_per_s) for started, tokens in self._progress.values()
        )

    def _admit_listed(self, fairness_key: Hashable) -> None:
        """Move items of one key's lists into the queue while there is room."""
        listed, queue = self._lists[fairness_key], self._queue
        max_listed_tokens = LISTED_BATCHES * self.max_batch_tokens * self.engine.runs_in_flight
        while (
            listed
            and queue.tokens < ROOM_SHARE * self.max_queue_tokens
            and queue.tokens_of(fairness_key) < max_listed_tokens
        ):
            item = listed.popleft()
            self._listed_tokens -= item.tokens
            queue.add(item)
        if not listed:
            del self._lists[fairness_key]

    def _admit_all_listed(self) -> None:
        for fairness_key in list(self._lists):
            waiting = len(self._lists[fairness_key])
            self._admit_listed(fairness_key)
            left = self._lists.get(fairness_key)
            if left and len(left) < waiting:  # other keys are first at the next room
                self._lists[fairness_key] = self._lists.pop(fairness_key)

    def _drop(self, item: QueueItem) -> None:
        """Remove an item whose caller no longer waits, if it is still waiting."""
        listed = self._lists.get(item.fairness_key)
        if item.is_queued:
            self._queue.discard(item)
            self._admit_all_listed()
        elif listed and item in listed:
            listed.remove(item)
            self._listed_tokens -= item.tokens
            if not listed:
                del self._lists[item.fairness_key]

    def _give_up(self, item: QueueItem) -> None:
        """Fail an item that waited too long, unless it is running."""
        if item not in self._running:
            bound_s = MAX_TIMES_LATE * self.max_wait_s
            item.fail(Overloaded(f"not started within {bound_s:g} s; it was dropped, retry after Retry-After"))

    def _fail_late(self, item: QueueItem) -> None:
        limit_s = math.ceil(1e3 * (item.deadline_s - item.arrived_s)) / 1e3  # of 1 ms, less is left by now
        item.fail(DeadlineExceeded(f"no result within the request's own time limit of {limit_s:.3f} s; it was dropped"))

    def _start_runs(self) -> None:
        """Start runs until `runs_in_flight` are running or the queue is empty."""

        def on_end(run: "asyncio.Task[None]") -> None:
            self._runs.discard(run)
            self._start_runs()

        self._is_starting = False
        self._admit_all_listed()
        while len(self._runs) < self.engine.runs_in_flight and len(self._queue):
            batch, late = self._queue.take(self.clock(), self.tokens_per_s / SAFETY or math.inf)
            for item in late:
                self._fail_late(item)
            self._admit_all_listed()
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

    async def _try_batch(self, batch: list[QueueItem]) -> bool:
        """Run a batch, and set the result or the error of each item. Return False if its items must run one by one."""
        sequences = [sequence for item in batch for sequence in item.sequences]
        lengths = [len(sequence) for sequence in sequences]
        padded = padded_cost(lengths, pads=self.engine.pads, length_multiple=self.engine.length_multiple)
        started, run = self.clock(), object()
        self._progress[run] = started, sum(lengths)
        try:
            output = await self.run_engine(sequences)
            expected = (len(sequences), self.count_logits(sequences))
            if (shape := np.shape(output.logits)) != expected:
                raise EngineFailed(f"the engine returned logits {shape} instead of {expected}")
        except Unavailable as error:
            for item in batch:
                item.fail(error)
            return True
        except Exception as error:  # noqa: BLE001  # any other kind is a failure of the engine
            failure: EngineError = EngineFailed(f"the engine raised {type(error).__name__}: {error}")
            if isinstance(error, EngineError):
                failure = error
            log.error("engine run failed", items=len(batch), reason=str(failure))
            self.on_batch(BatchReport(sequences, padded, self.clock() - started, failed=True))
            if len(batch) > 1:
                return False
            batch[0].fail(failure)
            return True
        finally:
            del self._progress[run]
        row = 0
        for item in batch:
            logits = output.logits[row : row + len(item.sequences)]
            row += len(item.sequences)
            item.complete(EngineResult(logits, started - item.arrived_s, output.seconds))
        self._learn(output, sequences, started)
        return True

    def _learn(self, output: BatchOutput, sequences: Sequence[Encoding], started: float) -> None:
        """Update the rate, and report the run. Sequences that did not run cost nothing, and count in neither."""
        ran = sequences if output.ran is None else output.ran
        if not ran:
            return
        lengths = [len(sequence) for sequence in ran]
        rate = sum(lengths) / max(self.clock() - started, 1e-6)
        self.tokens_per_s = 0.9 * self.tokens_per_s + 0.1 * rate if self.tokens_per_s else rate
        padded = padded_cost(lengths, pads=self.engine.pads, length_multiple=self.engine.length_multiple)
        # Deferred: callers with a result continue first.
        asyncio.get_running_loop().call_soon(self.on_batch, BatchReport(ran, padded, output.seconds))
