"""The engine in a process of its own: it may crash, hang or lie, and the service goes on."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from service.engine.supervisor import EngineProcess
from service.engine.worker import EngineOptions
from tests.service import faulty_engine as fault
from tests.support.waiting import PATIENCE_S
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines import open_engine
from tinyrm.errors import EngineError, EngineFailed, EngineHung, EngineUnavailable


@dataclass(frozen=True, slots=True)
class Faulty(EngineOptions):
    """The engine that misbehaves on demand."""

    def command(self, descriptor: int) -> list[str]:
        _, _, _, *options = EngineOptions.command(self, descriptor)
        return [sys.executable, "-m", "tests.service.faulty_engine", *options]


def reading(*ids: int) -> Encoding:
    return Encoding(np.array([1, *ids, 50, 51, 52, 4, 2], dtype=np.int64), Truncation())


def probe(bundle: Bundle) -> Encoding:
    spec = bundle.manifest.spec
    (one,) = bundle.encoder().encode(Comparison("a", "b", "c"), spec.instruction(None))
    return one


@asynccontextmanager
async def running(bundle_folder: Path, *, timeout_s: float = 1.0, streams: int = 1) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(Faulty(str(bundle_folder), streams=streams), probe(Bundle.open(bundle_folder)), timeout_s)
    await engine.start()
    try:
        await until(lambda: engine.trouble() is None)
        yield engine
    finally:
        await engine.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for knows of no event
            await asyncio.sleep(0.01)


def engine_processes() -> list[psutil.Process]:
    alive = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in alive if "faulty_engine" in " ".join(p.cmdline())]


@pytest.mark.parametrize("streams", [1, 2])
def test_it_answers_as_the_engine_itself_does(bundle_folder: Path, streams: int) -> None:
    readings = [reading(9), reading(10, 11), reading(*range(60, 90))]

    async def scenario() -> list[np.ndarray]:
        async with running(bundle_folder, streams=streams) as engine:
            runs = await asyncio.gather(*(engine.run([one]) for one in readings), engine.run(readings))
            assert all(run.seconds > 0 for run in runs)
            return [run.logits for run in runs]

    *alone, together = asyncio.run(scenario())
    direct = open_engine(Bundle.open(bundle_folder))
    expected = [direct.run([r]) for r in readings]
    np.testing.assert_allclose(np.concatenate(alone), np.concatenate(expected), atol=1e-5)
    np.testing.assert_allclose(together, np.concatenate(expected), atol=1e-5)


@pytest.mark.parametrize("bad", [fault.RAISES, fault.WRONG_SHAPE])
def test_a_run_that_raises_fails_alone_and_the_process_lives(bundle_folder: Path, bad: int) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            with pytest.raises(EngineFailed, match="onnxruntime-cpu: ValueError"):
                await engine.run([reading(bad)])
            assert (await engine.run([reading(9)])).logits.shape == (1, 2)
            assert (engine.restarts, engine.trouble()) == (0, None)

    asyncio.run(scenario())


def test_a_crash_fails_the_run_and_another_engine_takes_over(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            before = (await engine.run([reading(9)])).logits
            with pytest.raises(EngineFailed, match="its process ended with code -6"):
                await engine.run([reading(fault.CRASHES)])
            assert engine.trouble() == "the engine failed and is being restarted"
            after = await engine.run([reading(9)])
            np.testing.assert_array_equal(after.logits, before)
            await until(lambda: engine.trouble() is None)
            assert engine.restarts == 1
            assert len(engine_processes()) == 1

    asyncio.run(scenario())


def test_a_run_that_never_returns_is_trouble_before_its_time_is_over_and_then_ended(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder, timeout_s=4.0) as engine:
            (process,) = engine_processes()
            stuck = asyncio.create_task(engine.run([reading(fault.HANGS)]))
            await until(lambda: engine.trouble() is not None)
            assert not stuck.done(), "the trouble is noticed before the time of the run is over"
            with pytest.raises(EngineHung, match="did not answer within"):
                await stuck
            await until(lambda: not process.is_running())
            assert np.isfinite((await engine.run([reading(9)])).logits).all()

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_idle_engine_that_dies_or_freezes_is_noticed_and_replaced(
    bundle_folder: Path, number: signal.Signals
) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            (process,) = engine_processes()
            os.kill(process.pid, number)
            await until(lambda: engine.trouble() is not None)
            await until(lambda: engine.restarts == 1 and engine.trouble() is None)
            (other,) = engine_processes()
            assert other.pid != process.pid

    asyncio.run(scenario())


def test_a_row_that_is_no_number_is_the_rows_own_fault(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            logits = (await engine.run([reading(9), reading(fault.ANSWERS_NAN)])).logits
            assert np.isfinite(logits).all(axis=1).tolist() == [True, False]
            assert (engine.restarts, engine.trouble()) == (0, None)

    asyncio.run(scenario())


def test_an_engine_that_answers_nothing_but_nan_is_replaced(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            logits = (await engine.run([reading(fault.GOES_MAD)])).logits
            assert np.isnan(logits).all()
            await until(lambda: engine.trouble() is not None)
            assert np.isfinite((await engine.run([reading(9)])).logits).all()
            assert engine.restarts == 1

    asyncio.run(scenario())


def test_an_engine_that_cannot_start_says_why(bundle_folder: Path) -> None:
    async def scenario() -> None:
        options = EngineOptions(str(bundle_folder), engine="onnxruntime-cuda")
        await EngineProcess(options, probe(Bundle.open(bundle_folder)), 1.0).start()

    with pytest.raises(EngineUnavailable, match="CUDAExecutionProvider"):
        asyncio.run(scenario())


def test_nothing_is_left_behind(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            stuck = asyncio.create_task(engine.run([reading(fault.HANGS)]))
            await asyncio.sleep(0.1)
        with pytest.raises(EngineError):
            await stuck

    asyncio.run(scenario())
    assert engine_processes() == []
