"""All parts of all sources: those that are there are done, the others are scored."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from tinyrm.bulk.output import Done, claim, done, locked, write
from tinyrm.bulk.rows import Row
from tinyrm.bulk.scoring import Job, PartScorer
from tinyrm.bulk.sources import Part, find, plan
from tinyrm.manifest import Manifest

FORMAT = 1


class Progress(Protocol):
    """Who looks on. Rows are told while they are read, and again, all of a part, when it is written."""

    def begin(self, rows: int, rows_done: int) -> None: ...

    def readings(self, count: int) -> None: ...

    def written(self, rows: int) -> None: ...


class Runner(AbstractContextManager["Runner"], Protocol):
    """Where parts are scored. Entered, it knows the model and the engine."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def engine(self) -> str: ...

    def score(self, parts: Iterable[Part], progress: Progress) -> Iterator[Done]:
        """Each part that was written, in any order."""


@dataclass
class Total:
    """rows, errors: of the folder. The rest is of this run; seconds do not count how long engines took to start."""

    rows: int = 0
    errors: int = 0
    new_rows: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0

    def add(self, part: Done, *, new: bool) -> None:
        self.rows += part.rows
        self.errors += part.errors
        if new:
            self.new_rows += part.rows
            self.tokens += part.tokens
            self.flops += part.flops


def run(job: Job, words: Sequence[str], rows_per_part: int, runner: Runner, progress: Progress) -> Total:
    """Score what is not there yet. Raises InvalidInput, InvalidBundle, EngineError; what was written stays."""
    sources = [plan(name, rows_per_part) for name in find(words)]
    total = Total()
    with locked(job.out), runner:
        claim(job.out, _record(job, runner, {source.name: source.fingerprint for source in sources}, rows_per_part))
        missing = []
        for part in (part for source in sources for part in source.parts):
            if (counts := done(job.out, part)) is None:
                missing.append(part)
            else:
                total.add(counts, new=False)
        progress.begin(total.rows + sum(part.rows for part in missing), total.rows)
        began = time.monotonic()
        for counts in runner.score(missing, progress):
            total.add(counts, new=True)
            progress.written(counts.rows)
        total.seconds = time.monotonic() - began
    return total


class Here:
    """One engine in this process. Rows are read and encoded ahead of it, in a thread."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __enter__(self) -> Self:
        self._scorer = PartScorer(self._job)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """The engine goes with this process."""

    @property
    def manifest(self) -> Manifest:
        return self._scorer.bundle.manifest

    @property
    def engine(self) -> str:
        return self._scorer.engine

    def score(self, parts: Iterable[Part], progress: Progress) -> Iterator[Done]:
        for part, rows in self._encoded(parts):
            table, counts = self._scorer.table(part, rows, progress.readings)
            write(self._job.out, part, table, counts)
            yield counts

    def _encoded(self, parts: Iterable[Part]) -> Iterator[tuple[Part, list[Row]]]:
        ahead: deque[tuple[Part, Future[list[Row]]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="tinyrm-encode") as thread:
            for part in parts:
                ahead.append((part, thread.submit(self._scorer.encoded, part)))
                if len(ahead) > 1:
                    before, rows = ahead.popleft()
                    yield before, rows.result()
            for part, rows in ahead:
                yield part, rows.result()


def _record(job: Job, runner: Runner, sources: dict[str, str], rows_per_part: int) -> dict[str, Any]:
    """What two runs in one folder have to have in common."""
    return {
        "format": FORMAT,
        "model": runner.manifest.identity,
        "files": runner.manifest.files,
        "engine": runner.engine,
        "precision": job.precision,
        "domain": job.domain,
        "instruction": job.instruction,
        "rows_per_part": rows_per_part,
        "sources": sources,
    }
