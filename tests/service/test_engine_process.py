"""Test the engine process: it may crash, hang or return wrong results, and the service continues."""

import asyncio
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from service.engine import engine_process
from service.engine.engine_process import EngineProcess, wait_awake
from service.engine.pinned import open_pinned
from service.engine.worker import EngineProcessOptions
from service.process import FAILURE
from tests.service import faulty_engine as fault
from tests.support.waiting import PATIENCE_S
from tinyrm.bundle import Bundle, write_bundle
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines import EngineOptions, open_engine
from tinyrm.errors import EngineError, EngineFailed, EngineHung, EngineUnavailable, InvalidBundle

# The engine that misbehaves on demand.
FAULTY = "tests.service.faulty_engine"


def sequence(*ids: int) -> Encoding:
    return Encoding(np.array([1, *ids, 50, 51, 52, 4, 2], dtype=np.int64), Truncation())


def probe(bundle: Bundle) -> Encoding:
    spec = bundle.manifest.spec
    (one,) = bundle.encoder().encode(Comparison("a", "b", "c"), spec.instruction(None))
    return one


@asynccontextmanager
async def running(bundle_folder: Path, *, timeout_s: float = 1.0, streams: int = 1) -> AsyncIterator[EngineProcess]:
    options = EngineProcessOptions(EngineOptions(streams=streams), peak_gflops_per_s=100)
    bundle = open_pinned(bundle_folder, options.engine)
    engine = EngineProcess(bundle, options, partial(probe, bundle), timeout_s, module=FAULTY)
    await engine.start()
    try:
        await until(lambda: engine.unhealthy_reason() is None)
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
def test_the_process_returns_the_results_of_its_engine(bundle_folder: Path, streams: int) -> None:
    sequences = [sequence(9), sequence(10, 11), sequence(*range(60, 90))]

    async def scenario() -> list[np.ndarray]:
        async with running(bundle_folder, streams=streams) as engine:
            runs = await asyncio.gather(*(engine.run([one]) for one in sequences), engine.run(sequences))
            assert all(run.seconds > 0 for run in runs)
            return [run.logits for run in runs]

    *alone, together = asyncio.run(scenario())
    direct = open_engine(Bundle.open(bundle_folder))
    expected = [direct.run([r]) for r in sequences]
    np.testing.assert_allclose(np.concatenate(alone), np.concatenate(expected), atol=1e-5)
    np.testing.assert_allclose(together, np.concatenate(expected), atol=1e-5)


def test_a_run_or_a_row_that_fails_fails_alone_and_the_process_continues(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            for bad in (fault.RAISES, fault.WRONG_SHAPE):
                with pytest.raises(EngineFailed, match="onnxruntime-cpu: ValueError"):
                    await engine.run([sequence(bad)])
                assert (await engine.run([sequence(9)])).logits.shape == (1, 2)
                assert (engine.restarts, engine.unhealthy_reason()) == (0, None)
            logits = (await engine.run([sequence(9), sequence(fault.ANSWERS_NAN)])).logits
            assert np.isfinite(logits).all(axis=1).tolist() == [True, False]
            assert (engine.restarts, engine.unhealthy_reason()) == (0, None)

    asyncio.run(scenario())


def test_a_crash_fails_the_run_and_the_engine_is_replaced(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            before = (await engine.run([sequence(9)])).logits
            with pytest.raises(EngineFailed, match="its process ended with code -6"):
                await engine.run([sequence(fault.CRASHES)])
            assert engine.unhealthy_reason() == "the engine failed and is being restarted"
            after = await engine.run([sequence(9)])
            np.testing.assert_array_equal(after.logits, before)
            await until(lambda: engine.unhealthy_reason() is None)
            assert engine.restarts == 1
            assert len(engine_processes()) == 1

    asyncio.run(scenario())


def test_a_run_that_never_returns_is_reported_and_then_ended(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "LATE_S", 0.25)

    async def scenario() -> None:
        async with running(bundle_folder, timeout_s=2.0) as engine:
            (process,) = engine_processes()
            stuck = asyncio.create_task(engine.run([sequence(fault.HANGS)]))
            await until(lambda: engine.unhealthy_reason() is not None)
            assert not stuck.done(), "the trouble is noticed before the time of the run is over"
            with pytest.raises(EngineHung, match="did not reply within"):
                await stuck
            await until(lambda: not process.is_running())
            assert np.isfinite((await engine.run([sequence(9)])).logits).all()

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_an_idle_engine_that_ends_or_hangs_is_replaced(bundle_folder: Path, number: signal.Signals) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            (process,) = engine_processes()
            os.kill(process.pid, number)
            await until(lambda: engine.unhealthy_reason() is not None)
            await until(lambda: engine.restarts == 1 and engine.unhealthy_reason() is None)
            (other,) = engine_processes()
            assert other.pid != process.pid

    asyncio.run(scenario())


def test_an_engine_that_returns_only_nan_is_replaced(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            logits = (await engine.run([sequence(fault.GOES_MAD)])).logits
            assert np.isnan(logits).all()
            await until(lambda: engine.unhealthy_reason() is not None)
            assert np.isfinite((await engine.run([sequence(9)])).logits).all()
            assert engine.restarts == 1
            assert engine._options.engine.engine == "onnxruntime-cpu", "the engine that was chosen at the start"

    asyncio.run(scenario())


def test_an_engine_that_cannot_start_reports_the_reason(bundle_folder: Path) -> None:
    async def scenario() -> None:
        bundle = Bundle.open(bundle_folder)
        options = EngineProcessOptions(EngineOptions("onnxruntime-cuda"))
        await EngineProcess(bundle, options, partial(probe, bundle), 1.0).start()

    with pytest.raises(EngineUnavailable, match="CUDAExecutionProvider"):
        asyncio.run(scenario())


def test_a_lost_engine_is_replaced_while_the_shared_threads_are_busy(bundle_folder: Path) -> None:
    """Occupy the event loop's own pool: it is small, and other work in this process may use its threads for long."""
    is_over = threading.Event()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        async with running(bundle_folder) as engine:
            busy = loop.run_in_executor(None, is_over.wait, PATIENCE_S)
            try:
                engine_processes()[0].kill()
                await until(lambda: engine.restarts == 1 and engine.unhealthy_reason() is None)
                assert (await engine.run([sequence(9)])).logits.shape == (1, 2)
            finally:
                is_over.set()
                await busy

    asyncio.run(scenario())


def test_an_engine_opens_the_revision_that_is_served_or_none(bundle_folder: Path) -> None:
    """Without private copies, as on systems that have no files in memory, the folder must hold the same bundle."""
    manifest = Bundle.open(bundle_folder).manifest.model_copy(update={"revision": "of-yesterday"})
    known = partial(probe, Bundle.open(bundle_folder))
    engine = EngineProcess(Bundle(bundle_folder, manifest), EngineProcessOptions(), known, 1.0)
    with pytest.raises(InvalidBundle, match=r"holds toy@\w+ now, and toy@of-yesterday is served; reload"):
        asyncio.run(engine.start())


def replace_folder(folder: Path, other: Path) -> None:
    folder.rename(folder.with_name("aside"))
    other.rename(folder)


def overwrite_files(folder: Path, other: Path) -> None:
    for path in other.iterdir():
        shutil.copyfile(path, folder / path.name)


@pytest.mark.parametrize("change", [replace_folder, overwrite_files])
def test_a_replacement_opens_what_the_service_was_started_with(
    bundle_folder: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    folder = tmp_path / "served"
    shutil.copytree(bundle_folder, folder)
    manifest = Bundle.open(folder).manifest
    fields = manifest.model_dump(exclude={"files", "revision"}) | {"temperature": 4.0}
    write_bundle(tmp_path / "other", {name: folder / name for name in manifest.files}, fields)
    weights = bytearray((tmp_path / "other" / "model.onnx.data").read_bytes())
    weights[:] = bytes(len(weights))
    (tmp_path / "other" / "model.onnx.data").write_bytes(weights)

    async def scenario() -> None:
        async with running(folder) as engine:
            before = (await engine.run([sequence(9)])).logits
            change(folder, tmp_path / "other")
            np.testing.assert_array_equal((await engine.run([sequence(9)])).logits, before)
            engine_processes()[0].kill()
            await until(lambda: engine.restarts >= 1 and engine.is_up)
            np.testing.assert_array_equal((await engine.run([sequence(9)])).logits, before)
            assert engine.restarts == 1

    asyncio.run(scenario())


def test_a_replacement_with_other_logits_for_the_probe_takes_no_work(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            known = engine._probe_logits
            assert known is not None
            engine._probe_logits = known + 1
            engine_processes()[0].kill()
            await until(lambda: engine.restarts >= 2)
            assert not engine.is_up
            engine._probe_logits = known
            await until(lambda: engine.is_up)
            assert np.isfinite((await engine.run([sequence(9)])).logits).all()

    asyncio.run(scenario())


@pytest.mark.parametrize("pause_s", [0.6, 1.5])
def test_a_reply_that_arrived_during_a_pause_of_this_process_counts(pause_s: float) -> None:
    """Stop this process until the time limit has passed; the reply lies in the socket."""

    async def scenario() -> bytes:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            theirs.sendall(b"reply")
            asyncio.get_running_loop().call_soon(time.sleep, pause_s)
            reply = await wait_awake(reader.readexactly(5), 0.5)
            writer.close()
            return reply

    assert asyncio.run(scenario()) == b"reply"


def test_a_pause_of_this_process_does_not_count_as_time_that_the_engine_had() -> None:
    """Stop both for longer than the limit: the engine, which was stopped as well, replies after that."""

    async def scenario() -> str:
        loop = asyncio.get_running_loop()
        is_done = loop.create_future()
        loop.call_soon(time.sleep, 1.5)

        async def work() -> str:
            await asyncio.sleep(0)  # the pause
            loop.call_later(0.3, is_done.set_result, "done")
            result: str = await is_done
            return result

        return await wait_awake(work(), 1.0)

    assert asyncio.run(scenario()) == "done"


def test_work_that_takes_too_long_is_cancelled() -> None:
    async def scenario() -> bool:
        is_cancelled = False

        async def work() -> None:
            nonlocal is_cancelled
            try:
                await asyncio.sleep(PATIENCE_S)
            finally:
                is_cancelled = True

        with pytest.raises(TimeoutError):
            await wait_awake(work(), 0.05)
        await asyncio.sleep(0)
        return is_cancelled

    assert asyncio.run(scenario())


def test_an_engine_that_differs_for_good_ends_the_service(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, it would not be ready for ever."""
    monkeypatch.setattr(engine_process, "GIVE_UP_S", 0.5)
    signals: list[tuple[int, int]] = []
    kill = os.kill

    def note_failure(pid: int, number: int) -> None:
        if number == FAILURE:
            signals.append((pid, number))
        else:
            kill(pid, number)

    monkeypatch.setattr(os, "kill", note_failure)

    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            assert engine._probe_logits is not None
            engine._probe_logits = engine._probe_logits + 1
            await until(lambda: bool(signals))

    asyncio.run(scenario())
    assert signals == [(os.getpid(), FAILURE)]


def test_nothing_is_left_behind(bundle_folder: Path) -> None:
    async def scenario() -> None:
        async with running(bundle_folder) as engine:
            stuck = asyncio.create_task(engine.run([sequence(fault.HANGS)]))
            await asyncio.sleep(0.1)
        with pytest.raises(EngineError):
            await stuck

    asyncio.run(scenario())
    assert engine_processes() == []
