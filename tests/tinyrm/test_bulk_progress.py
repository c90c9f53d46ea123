"""Test what a person sees while files are scored: a line every ten seconds of the clock, or a bar that moves."""

import asyncio
import re
from dataclasses import dataclass

import pytest

from tinyrm.bulk import progress as module
from tinyrm.bulk.progress import BETWEEN_LINES_S, Progress


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_without_a_terminal_there_is_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(clock) as progress:
        progress.begin(100, 20)
        for second in range(1, 31):
            clock.now_s = float(second)
            progress.written(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"tinyrm: {20 + 2 * s} of 100 rows, 2.0 pairs/s" for s in (10, 20, 30)]


def test_results_that_wait_for_those_before_them_are_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(clock) as progress:
        progress.begin(8, 0)
        for step, shown in ((progress.scored, 4), (progress.scored, 8), (progress.written, 8), (progress.written, 8)):
            clock.now_s += BETWEEN_LINES_S
            step(4)
            assert re.search(rf"\b{shown} of 8 rows", capsys.readouterr().err)
    assert progress.rows == 8


def test_silence_of_the_service_is_a_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, beats = Clock(), []

    async def scenario() -> None:
        beaten = asyncio.Event()

        async def sleep(seconds: float) -> None:
            clock.now_s += seconds
            beats.append(seconds)
            if len(beats) > 25:
                beaten.set()
                await asyncio.Event().wait()

        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        with Progress(clock) as progress:
            progress.begin(None, 0)
            async with progress.beating():
                await beaten.wait()

    asyncio.run(scenario())
    assert capsys.readouterr().err.splitlines() == ["tinyrm: 0 rows, 0.0 pairs/s"] * 2


@pytest.mark.parametrize(("term", "has_bar"), [("xterm", True), ("dumb", False)])
def test_a_plain_terminal_has_lines_in_place_of_a_bar(
    monkeypatch: pytest.MonkeyPatch, term: str, has_bar: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert Progress().has_bar is has_bar
