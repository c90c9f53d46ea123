"""`tinyrm score --bundle`: whole preference sets into a folder of Parquet, without a service."""

import re
import time
from argparse import Namespace
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tinyrm.cli.bar import is_shown, say
from tinyrm.client.batches import Bar, progress_bar
from tinyrm.errors import EngineUnavailable, InvalidInput

if TYPE_CHECKING:
    from tinyrm.bulk.job import Runner, Total
    from tinyrm.bulk.scoring import Job

BETWEEN_LINES_S = 10.0


def score_offline(options: Namespace) -> int:
    """0 if every row has a score, 1 if some have an error."""
    if re.match(r"[a-z0-9]+:/", str(options.out)):
        raise InvalidInput(f"--out {options.out}: scores go to a folder of this machine, or to one that all share")
    try:
        from tinyrm.bulk.job import run
        from tinyrm.bulk.scoring import Job
    except ModuleNotFoundError as error:
        raise _without(error, "bulk") from error
    job = Job(
        bundle=options.bundle.absolute(), out=options.out.absolute(), engine=options.engine,
        precision=options.precision, threads=options.threads, domain=options.domain, instruction=options.instruction,
    )  # fmt: skip
    try:
        with Shown() as shown:
            total = run(job, options.pairs, options.rows_per_part, _runner(options, job), shown)
    except ModuleNotFoundError as error:
        raise EngineUnavailable(f"an engine needs {error.name}: pip install 'tinyrm[serve]'") from error
    except KeyboardInterrupt:
        say("interrupted; what is written stays, run it again to go on")
        raise
    _report(options, total)
    return 1 if total.errors else 0


class Shown:
    """A bar where a person looks on, else a line now and then."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._bar: Bar | None = None

    def __enter__(self) -> "Shown":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def begin(self, rows: int, rows_done: int) -> None:
        self._rows, self._written, self._told, self._half_rows = rows, rows_done, rows_done, 0
        self._began = self._said = time.monotonic()
        self._first = rows_done
        if is_shown():
            self._bar = self._open.enter_context(progress_bar(rows, shown=True, done=rows_done))

    def readings(self, count: int) -> None:
        self._half_rows += count
        self._tell(self._written + self._half_rows // 2)

    def written(self, rows: int) -> None:
        # Rows with an error have no readings, and rows on other machines are not seen while they are read.
        self._written += rows
        self._half_rows = 0
        self._tell(self._written)

    def _tell(self, rows: int) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(rows - self._told)
            self._told = rows
        elif now - self._said >= BETWEEN_LINES_S:
            rate = (rows - self._first) / (now - self._began)
            say(f"{rows} of {self._rows} rows, {rate:.1f} pairs/s")
            self._said = now


def _runner(options: Namespace, job: "Job") -> "Runner":
    if options.ray is None:
        from tinyrm.bulk.job import Here

        return Here(job)
    try:
        from tinyrm.bulk.on_ray import Cluster, OnRay
    except ModuleNotFoundError as error:
        raise _without(error, "ray") from error
    return OnRay(job, Cluster(options.ray, options.cpus_per_engine, options.gpus_per_engine, options.engines))


def _without(error: ModuleNotFoundError, extra: str) -> InvalidInput:
    option = {"bulk": "--bundle", "ray": "--ray"}[extra]
    return InvalidInput(f"{option} needs {(error.name or '').partition('.')[0]}: pip install 'tinyrm[{extra}]'")


def _report(options: Namespace, total: "Total") -> None:
    say(f"{total.rows} rows in {options.out}, {total.new_rows} of them new, {total.errors} with an error")
    if total.new_rows:
        seconds, gflop = max(total.seconds, 1e-9), total.flops / 1e9
        say(
            f"{seconds:.1f} s, {total.new_rows / seconds:.1f} pairs/s, {total.tokens / seconds:.0f} tokens/s, "
            f"{gflop:.1f} GFLOP, {gflop / seconds:.1f} GFLOP/s"
        )
