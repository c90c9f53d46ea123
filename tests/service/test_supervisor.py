"""Test that child processes and background tasks do not end unnoticed."""

import asyncio
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engine.supervisor import ChildProcess, run_in_background, supervise
from service.process import FAILURE, HANDLED
from service.scoring.models import Reload
from tinyrm.errors import EngineUnavailable

PATIENCE_S = 60
SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_the_end_of_a_child_is_noticed_while_the_shared_threads_are_busy() -> None:
    is_over = threading.Event()

    async def scenario() -> int:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, is_over.wait, PATIENCE_S)
        try:
            child = ChildProcess([sys.executable, "-c", "raise SystemExit(3)"])
            async with asyncio.timeout(PATIENCE_S):
                return await child.ended
        finally:
            is_over.set()
            await busy

    assert asyncio.run(scenario()) == 3


def test_a_child_that_does_not_end_in_time_is_killed() -> None:
    async def scenario() -> int:
        return await ChildProcess(SLEEPS).stop(0.05)

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_a_child_that_ends_is_replaced_and_one_that_does_not_start_is_tried_again() -> None:
    async def scenario() -> None:
        started: list[ChildProcess] = []
        ended: list[ChildProcess] = []
        attempts = 0
        is_running = asyncio.Event()

        async def start() -> ChildProcess:
            nonlocal attempts
            attempts += 1
            if attempts == 2:
                raise EngineUnavailable("not this time")
            started.append(ChildProcess([sys.executable, "-c", ""] if attempts == 1 else SLEEPS))
            if len(started) == 2:
                is_running.set()
            return started[-1]

        work = supervise(start, ended.append, name="child", first_delay_s=0.01, max_delay_s=0.02)
        task = run_in_background(work, "supervisor")
        async with asyncio.timeout(PATIENCE_S):
            await is_running.wait()
        task.cancel()
        assert (attempts, ended) == (3, started[:1])
        await started[1].stop(0)

    asyncio.run(scenario())


def test_a_supervisor_gives_up_when_no_child_has_started_for_too_long() -> None:
    async def start() -> ChildProcess:
        raise EngineUnavailable("no device")

    async def scenario() -> None:
        work = supervise(start, print, name="child", first_delay_s=0.01, max_delay_s=0.01, give_up_s=0.05)
        async with asyncio.timeout(PATIENCE_S):
            await work

    with pytest.raises(EngineUnavailable, match="no device"):
        asyncio.run(scenario())


def test_whatever_a_start_raises_is_logged_and_it_is_tried_again() -> None:
    async def scenario() -> None:
        attempts = 0
        is_over = asyncio.Event()

        async def start() -> ChildProcess:
            nonlocal attempts
            attempts += 1
            if attempts == 3:
                is_over.set()
            raise ValueError("unforeseen")

        work = supervise(start, print, name="child", first_delay_s=0.01, max_delay_s=0.01)
        task = asyncio.create_task(work)
        async with asyncio.timeout(PATIENCE_S):
            await is_over.wait()
        assert not task.done()
        task.cancel()

    asyncio.run(scenario())


def test_signals_that_reach_a_child_during_its_start_wait() -> None:
    """Send them before its interpreter runs. It unblocks them when it can handle them."""
    code = f"""
import signal
got = []
for number in {[int(number) for number in HANDLED]}:
    signal.signal(number, lambda number, _: got.append(number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {[int(number) for number in HANDLED]})
raise SystemExit(len(got))
"""

    async def scenario() -> int:
        child = ChildProcess([sys.executable, "-c", code])
        for number in HANDLED:
            child.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            return await child.ended

    assert asyncio.run(scenario()) == len(HANDLED)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(HANDLED), "this process receives them as before"


def test_a_reload_that_raises_does_not_keep_a_later_one_from_running() -> None:
    async def scenario() -> int:
        reloads, is_done = 0, asyncio.Event()

        async def reload() -> None:
            nonlocal reloads
            reloads += 1
            if reloads == 1:
                later.request()
                raise PermissionError("weights.onnx")
            is_done.set()

        later = Reload(reload)
        later.request()
        async with asyncio.timeout(PATIENCE_S):
            await is_done.wait()
        return reloads

    assert asyncio.run(scenario()) == 2


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_background_task_that_raises_shuts_the_process_down(
    monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *sent: signals.append(sent))

    async def fail() -> None:
        if is_cancelled:
            await asyncio.sleep(PATIENCE_S)
        raise RuntimeError("unable to perform operation")

    async def scenario() -> None:
        task = run_in_background(fail(), "reports")
        await asyncio.sleep(0)
        if is_cancelled:
            task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert signals == ([] if is_cancelled else [(os.getpid(), FAILURE)])
