"""Child processes and background tasks: each is watched, so none ends unnoticed."""

import asyncio
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

import structlog

from service.logs import describe_failure
from service.process import FAILURE, signals_blocked

log = structlog.get_logger("tinyrm")

# A child that ran this long did not fail because of its start.
SETTLED_S = 30.0


def run_in_background(work: Coroutine[None, None, None], name: str) -> "asyncio.Task[None]":
    """Start a task that runs until it is cancelled. If it raises, this process logs why, shuts down and fails."""

    def shut_down_after_failure(task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()):
            log.critical("background task failed; shutting down", task=name, exc_info=error)
            os.kill(os.getpid(), FAILURE)

    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(shut_down_after_failure)
    return task


class ChildProcess:
    """A started process.

    ended: its exit code, once it has ended. A separate thread waits for it, because all threads of a shared pool may be
    busy just then.

    A signal that reaches it during its start waits until it calls `unblock_signals`.
    """

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self.started_s = time.monotonic()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with signals_blocked():
            self._popen = subprocess.Popen(command, pass_fds=pass_fds)  # noqa: S603
        self.pid = self._popen.pid

        def watch() -> None:
            code = self._popen.wait()
            with suppress(RuntimeError):  # the loop is closed: this process is about to end
                self.ended.get_loop().call_soon_threadsafe(self.ended.set_result, code)

        threading.Thread(target=watch, daemon=True, name=f"child {self.pid}").start()

    async def wait(self) -> None:
        """Wait until the process has ended."""
        await asyncio.wait({self.ended})

    async def stop(self, timeout_s: float) -> int:
        """Wait until the process has ended, kill it after `timeout_s`, and return its exit code."""
        await asyncio.wait({self.ended}, timeout=timeout_s)
        self._popen.kill()
        await self.wait()
        return self.ended.result()

    def send_signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        self._popen.kill()


class Child(Protocol):
    """A process that a supervisor restarts."""

    @property
    def started_s(self) -> float: ...

    async def wait(self) -> None:
        """Wait until it has ended."""


C = TypeVar("C", bound=Child)


async def supervise(
    start: Callable[[], Awaitable[C]],
    on_end: Callable[[C], None],
    *,
    name: str,
    child: C | None = None,
    first_delay_s: float,
    max_delay_s: float,
    give_up_s: float = math.inf,
) -> None:
    """Keep one child running until cancelled: start another when it has ended, with growing delays if it ends early.

    start: returns a child that is ready for work; if it raises, the error is logged and it is called again.
    on_end: called with each child that has ended.
    name: how the log names the child.
    child: a child that is already running.
    give_up_s: raise the error of the last start if none has succeeded for this long.
    """
    delay_s, down_since = first_delay_s, math.inf
    while True:
        if child is None:
            try:
                child = await start()
            except Exception as error:
                log.error(f"{name} does not start", **describe_failure(error), next_try_s=delay_s)
                down_since = min(down_since, time.monotonic())
                if time.monotonic() - down_since > give_up_s:
                    raise
        if child:
            down_since = math.inf
            await child.wait()
            if time.monotonic() - child.started_s > SETTLED_S:
                delay_s = first_delay_s
            on_end(child)
            child = None
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, max_delay_s)
