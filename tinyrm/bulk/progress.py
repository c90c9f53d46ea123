"""Counts of a job, and its progress on standard error."""

import asyncio
import importlib.util
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Self

from tinyrm.client.batches import Bar, progress_bar

BETWEEN_LINES_S = 10.0
BEAT_S = 1.0


def say(text: str) -> None:
    print(f"tinyrm: {text}", file=sys.stderr, flush=True)


@dataclass
class Total:
    """Counts of a job: `rows` and `errors` are of the whole output, the others of this run."""

    rows: int = 0
    errors: int = 0
    new_rows: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    """Without the start of engines."""


class Progress:
    """A bar on a terminal, where tqdm is installed; otherwise a line now and then.

    clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.rows = 0
        self._clock = clock
        is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.has_bar = is_terminal and importlib.util.find_spec("tqdm") is not None
        self._half_rows = self._ahead = 0
        self._total: int | None = None
        self._open = ExitStack()
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def begin(self, total: int | None, done: int) -> None:
        """Start the clock and the bar.

        total: rows of the job; None if they are not counted.
        done: rows that an earlier run scored.
        """
        self.rows = self._first = self._shown = done
        self._total = total
        self._began = self._last_line = self._clock()
        if self.has_bar:
            self._bar = self._open.enter_context(progress_bar(total, shown=True, done=done))

    def sequences(self, count: int) -> None:
        """Count scored sequences; a row has two. The row itself is counted when it is written."""
        self._half_rows += count
        self._show()

    def scored(self, rows: int) -> None:
        """Count rows whose results are known and wait for those of rows before them, to be written in order."""
        self._ahead += rows
        self._show()

    def written(self, rows: int) -> None:
        # Rows with an error have no sequences, and the sequences of other machines are not counted.
        self.rows += rows
        self._half_rows = 0
        self._ahead = max(0, self._ahead - rows)
        self._show()

    @asynccontextmanager
    async def beating(self) -> AsyncGenerator[None]:
        """Show the progress also while nothing is written, such as while the service does not respond."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(BEAT_S)
                self._show()

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()

    def _show(self) -> None:
        rows = self.rows + self._ahead + self._half_rows // 2
        now = self._clock()
        if self._bar is not None:
            self._bar.update(rows - self._shown)
            self._shown = rows
        elif now - self._last_line >= BETWEEN_LINES_S:
            of_all = "" if self._total is None else f" of {self._total}"
            rate = (rows - self._first) / (now - self._began)
            say(f"{rows}{of_all} rows, {rate:.1f} pairs/s")
            self._last_line = now
