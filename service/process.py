"""The signals of the service's processes, while an event loop runs and while a process is started."""

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from service.early import STOP

# One cause may send several signals: a Ctrl-C that a wrapper passes on as well, a supervisor that signals the group.
SAME_CAUSE_S = 1.0
# Sent by a process to itself when a part of it that must run has failed.
FAILURE = signal.SIGUSR1
HANDLED = (*STOP, signal.SIGHUP, FAILURE)

# Exit codes.
FAILED, CANNOT_START = 1, 3


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals that the service handles, in this thread and in every process that is started meanwhile.

    A started process inherits the blocked signals. They wait until it can handle them and calls `unblock_signals`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def block_signals() -> None:
    """Block the signals for the rest of a process that has stopped: its event loop does not handle them any more."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


class StopSignals:
    """The signals that stop this process, handled by its event loop.

    stopped: set by the first SIGTERM or SIGINT, and by FAILURE.
    cut: set by another one that comes later than SAME_CAUSE_S after the first: accepted work is no longer wanted.
    exit_code: of a process that has stopped.
    """

    def __init__(self) -> None:
        self.stopped, self.cut = asyncio.Event(), asyncio.Event()
        self.exit_code = 0
        self._first_s = 0.0
        self._on_stop: Callable[[], None] = lambda: None
        self._on_cut: Callable[[], None] = lambda: None
        loop = asyncio.get_running_loop()
        for number in STOP:
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(FAILURE, self.stop, FAILED)

    def call(self, *, on_stop: Callable[[], None], on_cut: Callable[[], None] = lambda: None) -> None:
        """Call these functions when the events are set; at once if they are set already."""
        self._on_stop, self._on_cut = on_stop, on_cut
        if self.stopped.is_set():
            on_stop()
        if self.cut.is_set():
            on_cut()

    async def run_unless_stopped(self, start: Coroutine[Any, Any, None]) -> bool:
        """Run `start`; a signal to stop cancels it. Return whether it has ended by itself."""
        starting = asyncio.ensure_future(start)
        stopped = asyncio.ensure_future(self.stopped.wait())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
        if starting.cancelled():
            return False
        starting.result()
        return True

    def stop(self, exit_code: int = 0) -> None:
        """Stop as a signal does. The first exit code that is not 0 counts."""
        self.exit_code = self.exit_code or exit_code
        if not self.stopped.is_set():
            self._first_s = time.monotonic()
            self.stopped.set()
            self._on_stop()
        elif time.monotonic() - self._first_s > SAME_CAUSE_S and not self.cut.is_set():
            self.cut.set()
            self._on_cut()
