"""Score all shards of all sources whose output file does not exist yet."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from typing import Protocol, Self

from tinyrm.bulk.bundle import BundleJob, ShardScorer
from tinyrm.bulk.parquet import ShardStats, claim, locked_folder, read_stats, write
from tinyrm.bulk.progress import Progress, Total
from tinyrm.bulk.sources import Shard, find, plan
from tinyrm.manifest import Manifest

FORMAT = 1


class Runner(AbstractContextManager["Runner"], Protocol):
    """Where shards are scored. The model and the engine are known once the runner is entered."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def engine(self) -> str: ...

    def score(self, shards: Iterable[Shard], progress: Progress) -> Iterator[ShardStats]:
        """Score and write shards, and yield the counts of each, in any order."""


def run(job: BundleJob, pairs: Sequence[str], rows_per_shard: int, runner: Runner, progress: Progress) -> Total:
    """Score the shards that are missing. Raises InvalidInput, InvalidBundle, EngineError; what was written stays."""
    sources = [plan(name, rows_per_shard) for name in find(pairs)]
    total = Total()
    with locked_folder(job.out), runner:
        # Two runs in one folder must agree in all of this.
        record = {
            "format": FORMAT,
            "model": runner.manifest.identity,
            "files": runner.manifest.files,
            "engine": runner.engine,
            "precision": job.precision,
            "domain": job.domain,
            "instruction": job.instruction,
            "rows_per_part": rows_per_shard,
            "sources": {source.name: source.fingerprint for source in sources},
        }
        if job.reasoning != "keep":
            record["reasoning"] = job.reasoning
        claim(job.out, record)
        missing = []
        for shard in (shard for source in sources for shard in source.shards):
            if (stats := read_stats(job.out, shard)) is None:
                missing.append(shard)
            else:
                total.rows += stats.rows
                total.errors += stats.errors
        progress.begin(total.rows + sum(shard.rows for shard in missing), total.rows)
        began = time.monotonic()
        for stats in runner.score(missing, progress):
            total.rows += stats.rows
            total.errors += stats.errors
            total.new_rows += stats.rows
            total.tokens += stats.tokens
            total.flops += stats.flops
            progress.written(stats.rows)
        total.seconds = time.monotonic() - began
    return total


class LocalRunner:
    """One engine in this process. A thread reads and encodes the next shard's rows while the engine runs."""

    def __init__(self, job: BundleJob) -> None:
        self._job = job

    def __enter__(self) -> Self:
        self._scorer = ShardScorer(self._job)
        return self

    def __exit__(self, *_: object) -> None:
        """The engine ends with this process."""

    @property
    def manifest(self) -> Manifest:
        return self._scorer.bundle.manifest

    @property
    def engine(self) -> str:
        return self._scorer.engine

    def score(self, shards: Iterable[Shard], progress: Progress) -> Iterator[ShardStats]:
        with ThreadPoolExecutor(1, thread_name_prefix="tinyrm-encode") as thread:
            waiting = iter(shards)
            ahead = deque((shard, thread.submit(self._scorer.read, shard)) for shard in islice(waiting, 2))
            while ahead:
                shard, reading = ahead.popleft()
                table, stats = self._scorer.score(shard, reading.result(), progress.sequences)
                write(self._job.out, shard, table, stats)
                yield stats
                ahead.extend((shard, thread.submit(self._scorer.read, shard)) for shard in islice(waiting, 1))
