"""The queue in front of the tokenizer: threads of its own, with admission, deadlines and fairness as for the engine."""

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from service.engine.queue import FairQueue, choose_in_turn
from tinyrm.deadline import Deadline
from tinyrm.errors import NOT_FINISHED, DeadlineExceeded, Overloaded, ShuttingDown

T = TypeVar("T")

# Texts of up to this many characters together are encoded in a few milliseconds, in threads that do nothing longer.
SHORT_CHARACTERS = 8192
# The rate of one thread before it is measured.
CHARACTERS_PER_S = 1_000_000.0
TOO_LATE = "the request's own time limit passed before its texts were encoded"


@dataclass(slots=True, eq=False)
class EncodeItem:
    """Texts that wait for a thread. The fields are those of `Queued`; a token is a character here.

    begin: done when a thread is free for them.
    """

    tokens: int
    begin: "asyncio.Future[None]"
    arrived_s: float
    fairness_key: Hashable
    deadline_s: float
    turn: float = 0.0
    is_queued: bool = False

    @property
    def is_abandoned(self) -> bool:
        return self.begin.done()


class EncodeLane:
    """Some threads with one queue.

    threads: how many. A thread gets work only when it is free, so nothing waits outside of the queue.
    """

    def __init__(self, name: str, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.characters_per_s = CHARACTERS_PER_S
        self._size = self._free = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._queue: FairQueue[EncodeItem] = FairQueue(1, choose_in_turn)
        self._running_characters = 0
        self._clock = clock
        self._is_closed = False

    def wait_s(self, fairness_key: Hashable) -> float:
        """Return the seconds until a thread could begin with new work of this key."""
        return self._seconds(self._queue.tokens_ahead(fairness_key))

    def total_s(self) -> float:
        """Return the seconds until all texts that wait now could be encoded."""
        return self._seconds(self._queue.tokens)

    async def run(self, work: Callable[[], T], characters: int, fairness_key: Hashable, deadline: Deadline) -> T:
        """Run `work` in a thread when it is its turn. Raises DeadlineExceeded, ShuttingDown, and what `work` raises.

        If the caller is cancelled or its deadline passes, work that waits is dropped, and the result of work that runs.
        """
        if self._is_closed:
            raise ShuttingDown(NOT_FINISHED)
        try:
            async with asyncio.timeout(deadline.left_s()):
                if not self._free:
                    await self._wait_for_turn(characters, fairness_key, deadline)
                else:
                    self._free -= 1
                return await self._run_now(work, characters)
        except TimeoutError:
            raise DeadlineExceeded(TOO_LATE) from None

    def shut_down(self) -> None:
        """Refuse all work that has not begun."""
        self._is_closed = True
        for item in self._queue.clear():
            if not item.begin.done():
                item.begin.set_exception(ShuttingDown(NOT_FINISHED))
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _seconds(self, characters: float) -> float:
        if self._free:
            return 0.0
        return (characters + self._running_characters / 2) / (self.characters_per_s * self._size)

    async def _wait_for_turn(self, characters: int, fairness_key: Hashable, deadline: Deadline) -> None:
        now, left_s = self._clock(), deadline.left_s()
        begin: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        deadline_s = math.inf if left_s is None else now + left_s
        item = EncodeItem(characters, begin, now, fairness_key, deadline_s)
        self._queue.add(item)
        try:
            await begin
        except BaseException:
            if item.is_queued:
                self._queue.discard(item)
            elif begin.done() and not begin.cancelled() and not begin.exception():
                self._release()  # it was its turn, but its caller has left
            raise

    async def _run_now(self, work: Callable[[], T], characters: int) -> T:
        started = self._clock()
        self._running_characters += characters

        def on_end() -> None:
            self._running_characters -= characters
            self._release()

        loop = asyncio.get_running_loop()
        try:
            done = self._threads.submit(work)
        except RuntimeError as error:  # shut down
            on_end()
            raise ShuttingDown(NOT_FINISHED) from error
        try:
            result = await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            # The thread is free only when it has ended the work, whether or not anybody waits for the result.
            if done.cancelled():
                on_end()
                task = asyncio.current_task()
                if self._is_closed and not (task and task.cancelling()):
                    raise ShuttingDown(NOT_FINISHED) from None
            else:
                done.add_done_callback(lambda _: call_in(loop, on_end))
            raise
        except BaseException:
            on_end()
            raise
        on_end()
        seconds = max(self._clock() - started, 1e-6)
        if characters > SHORT_CHARACTERS // 2:  # the hand-over to the thread takes as long as a short text
            self.characters_per_s = 0.9 * self.characters_per_s + 0.1 * characters / seconds
        return result

    def _release(self) -> None:
        """Give the thread to the next item in turn."""
        batch, late = self._queue.take(self._clock(), self.characters_per_s)
        for item in late:
            item.begin.set_exception(DeadlineExceeded(TOO_LATE))
        if batch:
            batch[0].begin.set_result(None)
        else:
            self._free += 1


def call_in(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call `callback` in the loop from another thread, unless the loop has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


class EncodeQueue:
    """Encodes texts in threads: short texts never wait behind long ones, and keys share the threads fairly.

    threads: for short texts; half as many encode long ones, so that the engine and the event loop find a processor.
    max_wait_s: work that would wait longer is refused.
    """

    def __init__(self, threads: int, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._short = EncodeLane("encode-short", threads)
        self._long = EncodeLane("encode-long", max(1, threads // 2))

    def total_s(self) -> float:
        """Return the seconds until all texts that wait now could be encoded."""
        return max(self._short.total_s(), self._long.total_s())

    def refuse_if_busy(
        self, characters: int, fairness_key: Hashable, deadline: Deadline, engine_wait_s: Callable[[], float]
    ) -> None:
        """Raise Overloaded if texts would wait too long before they are encoded and the engine begins.

        engine_wait_s: returns the wait for the engine.
        """
        wait_s = self._lane(characters).wait_s(fairness_key)
        if not wait_s:
            return
        wait_s += engine_wait_s()
        max_s = min(self._max_wait_s, math.inf if (left_s := deadline.left_s()) is None else left_s)
        if wait_s > max_s:
            raise Overloaded(
                f"new texts would wait {wait_s:.1f} s to be encoded and scored, more than {max_s:g} s; "
                "retry after Retry-After"
            )

    async def run(self, work: Callable[[], T], characters: int, fairness_key: Hashable, deadline: Deadline) -> T:
        """Return the result of `work`, which encodes texts of so many characters. See `EncodeLane.run`."""
        return await self._lane(characters).run(work, characters, fairness_key, deadline)

    def shut_down(self) -> None:
        self._short.shut_down()
        self._long.shut_down()

    def _lane(self, characters: int) -> EncodeLane:
        return self._short if characters <= SHORT_CHARACTERS else self._long
