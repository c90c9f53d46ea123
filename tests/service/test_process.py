"""Test signals from the start to the end, standard streams that are closed, and the folder of a service."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from service import process
from service.early import STOP
from service.process import CANNOT_START, FAILED, FAILURE, StopSignals
from service.workers.runtime import MARK, PREFIX, runtime_folder
from tests.support.waiting import PATIENCE_S
from tinyrm.errors import InvalidSettings


def signalled(scenario: Callable[[StopSignals], None]) -> StopSignals:
    async def run() -> StopSignals:
        signals = StopSignals()
        scenario(signals)
        await asyncio.sleep(0.01)
        return signals

    return asyncio.run(run())


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP)
def test_several_signals_of_one_cause_stop_once_and_do_not_cut(number: signal.Signals) -> None:
    signals = signalled(lambda _: send(number, *STOP, number))
    assert (signals.stopped.is_set(), signals.cut.is_set(), signals.exit_code) == (True, False, 0)


def test_a_later_signal_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SAME_CAUSE_S", -1.0)
    signals = signalled(lambda _: send(signal.SIGTERM, signal.SIGINT))
    assert signals.cut.is_set()


def test_a_part_that_failed_stops_the_process_with_another_exit_code() -> None:
    signals = signalled(lambda _: send(FAILURE))
    assert (signals.stopped.is_set(), signals.exit_code) == (True, FAILED)
    assert signalled(lambda signals: signals.stop(CANNOT_START)).exit_code == CANNOT_START


def test_functions_are_called_also_for_a_signal_before_they_were_known() -> None:
    called: list[str] = []

    async def scenario() -> None:
        signals = StopSignals()
        signals.stop()
        signals.call(on_stop=lambda: called.append("stop"), on_cut=lambda: called.append("cut"))
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert called == ["stop"]


def test_a_signal_cancels_the_start() -> None:
    async def scenario() -> list[object]:
        signals, ends = StopSignals(), []

        async def start() -> None:
            send(signal.SIGTERM)
            try:
                await asyncio.sleep(PATIENCE_S)
            finally:
                await asyncio.sleep(0)
                ends.append("cleaned up")

        return [await signals.run_unless_stopped(start()), *ends]

    assert asyncio.run(scenario()) == [False, "cleaned up"]


def test_a_start_that_fails_raises_its_error() -> None:
    async def scenario() -> None:
        async def start() -> None:
            raise InvalidSettings("no")

        await StopSignals().run_unless_stopped(start())

    with pytest.raises(InvalidSettings):
        asyncio.run(scenario())


STREAMS = """
import os, socket, sys
for descriptor in {closed}:
    os.close(descriptor)
if 2 in {closed}:
    sys.stderr = None
if 1 in {closed}:
    sys.stdout = None
from service.early import open_standard_streams
open_standard_streams()
print("out"); sys.stderr.write("err")
taken = socket.socket().fileno()
os._exit(taken if all(os.get_inheritable(d) for d in range(3)) else 99)
"""


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_closed_standard_streams_are_opened_so_that_no_socket_gets_their_numbers(closed: list[int]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STREAMS.format(closed=closed)], check=False, stdin=subprocess.DEVNULL, timeout=PATIENCE_S
    )
    assert 3 <= done.returncode < 99


EARLY = """
import os, signal
from service.early import leave_on_signals
leave_on_signals()
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.{name})
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_during_the_imports_ends_the_process_with_one_line(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY.format(name=name)], check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (0, f"tinyrm: stopped by {name} during the start\n")


def test_folders_of_services_that_were_killed_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    abandoned, foreign = tmp_path / f"{PREFIX}abandoned", tmp_path / f"{PREFIX}foreign"
    for folder in (abandoned, foreign):
        folder.mkdir()
        (folder / "file").touch()
    (abandoned / MARK).touch()
    with runtime_folder() as first:
        assert not abandoned.exists()
        with runtime_folder() as second:
            assert first.exists(), "its owner runs"
            assert second != first
    assert list(tmp_path.iterdir()) == [foreign], "nothing shows that a service made it"


def test_without_a_folder_for_temporary_files_workers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(InvalidSettings, match="TMPDIR"), runtime_folder():
        pass
