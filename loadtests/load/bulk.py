"""python -m loadtests.load.bulk: score a preference set in one process and through Ray, where a worker is killed."""

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from loadtests import machine
from loadtests.payloads import synthetic
from loadtests.report import measured_on, table, write
from loadtests.service_process import STARTER
from tinyrm.command_line import parse
from tinyrm.pairs import read_pairs

HEADING = "## A whole preference set"
# Ray costs most where a pair costs least, so the shortest pairs are scored.
SHORTEST_SHARE = 0.4
MIN_SHARE = 0.9
# The part that a killed worker had begun is scored again: small parts lose little.
PARTS = 80
RATE = re.compile(r"([\d.]+) s, ([\d.]+) pairs/s")


@dataclass(frozen=True)
class Options:
    """Score a preference set in one process and through Ray, where a worker is killed midway."""

    model: Path = STARTER
    """Bundle."""
    pairs: Path = Path("data/train.jsonl.gz")
    """Preference set; synthetic texts if the file is absent."""
    rows: int = 20_000
    """Rows to score through Ray."""
    engines: int = 2
    """Engines of one CPU each on Ray; in one process, as many threads."""
    no_write: bool = False
    """Print the section, and leave the document as it is."""
    document: Path = Path("docs/scaling.md")
    """Markdown file to write the section into; the numbers go to results/bulk.json beside it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command.

    rate: pairs a second, as the command states it.
    seconds: of the whole process, start included.
    killed: workers that were killed meanwhile.
    """

    name: str
    rows: int
    rate: float
    seconds: float
    killed: int = 0


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m loadtests.load.bulk")
    rows, origin = read_rows(options.pairs, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        runs, counts = measure(rows, Path(folder), options)
    twice, missing = sum(n - 1 for n in counts.values()), len(rows) - len(counts)
    text = section(runs, origin, twice, missing)
    print(text, flush=True)
    if not options.no_write:
        write({"origin": origin, "legs": [asdict(run) for run in runs]}, "bulk", HEADING, text, options.document)
    if twice or missing:
        print(f"{twice} rows twice, {missing} rows missing", file=sys.stderr)
    return 1 if twice or missing else 0


def read_rows(path: Path, count: int) -> tuple[list[dict[str, Any]], str]:
    """Return the shortest pairs in random order, repeated up to `count`; an id makes each row unique."""
    if path.is_file():
        pairs = sorted(read_pairs(path), key=lambda pair: len(pair.prompt) + len(pair.chosen) + len(pair.rejected))
        pairs = pairs[: max(1, int(len(pairs) * SHORTEST_SHARE))]
        rows = [pair.model_dump(include={"prompt", "chosen", "rejected"}) for pair in pairs]
        origin = f"the {len(rows):,} shortest pairs of {path}, repeated"
    else:
        rows, origin = synthetic(count), f"synthetic texts ({path} is absent)"
    random.Random(17).shuffle(rows)
    return [{"id": f"x{n}", **row} for n, row in enumerate(islice(cycle(rows), count))], origin


def measure(
    rows: Sequence[dict[str, Any]], folder: Path, options: Options
) -> tuple[list[Run], "Counter[tuple[str, int]]"]:
    """Return the runs, and how often each row was written through Ray.

    One process runs before and after Ray, on a part of the rows, so that a machine that changes meanwhile is noticed.
    """
    whole, part = folder / "whole.jsonl", folder / "part.jsonl"
    for path, content in ((whole, rows), (part, rows[:: max(1, options.engines * 2)])):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    common = ("--bundle", options.model, "--engine", "onnxruntime-cpu", "--rows-per-part", max(1, len(rows) // PARTS))
    single = (*common, "--threads", options.engines)
    ray = (*common, "--cpus-per-engine", 1, "--engines", options.engines, "--ray")
    runs = [
        score("one process", part, folder / "before", single),
        score("Ray, a worker killed", whole, folder / "ray", ray, kill_after=len(rows) // 2),
        score("one process again", part, folder / "after", single),
    ]
    written = pq.read_table(folder / "ray", columns=["source", "row", "error"]).to_pylist()
    return runs, Counter((row["source"], row["row"]) for row in written if row["error"] is None)


def score(name: str, pairs: Path, out: Path, words: Sequence[object], *, kill_after: int | None = None) -> Run:
    """Run `tinyrm score` once. Raises RuntimeError with its output if it fails.

    kill_after: kill one of Ray's workers when this many rows are written.
    """
    command = [sys.executable, "-m", "tinyrm", "score", pairs, "--out", out, *words]
    print(f"measuring: {name}", flush=True)
    started_at = time.monotonic()
    # A file: a pipe would fill up while we wait for rows.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen([str(word) for word in command], stderr=log)  # noqa: S603  # the command above
        killed = kill_worker(process, out, kill_after) if kill_after is not None else 0
        process.wait()
        seconds = time.monotonic() - started_at
        log.seek(0)
        output = log.read()
    rate = RATE.search(output)
    if process.returncode or not rate:
        raise RuntimeError(f"the command exited with {process.returncode}: {output}")
    with pairs.open(encoding="utf-8") as lines:
        rows = sum(1 for _ in lines)
    return Run(name, rows, float(rate[2]), seconds, killed)


def kill_worker(process: "subprocess.Popen[Any]", out: Path, rows: int) -> int:
    """Send SIGKILL to a worker of Ray once `rows` rows are written. Return the number killed: 0 if the command ended.

    `poll` reaps the command if it ends early; psutil.pid_exists would see its zombie for ever.
    """
    while sum(pq.read_metadata(part).num_rows for part in out.glob("*.parquet")) < rows:
        if process.poll() is not None:
            return 0
        time.sleep(0.2)
    with suppress(psutil.NoSuchProcess):  # the command, or a worker that ends meanwhile
        for child in psutil.Process(process.pid).children(recursive=True):
            if "MapWorker" in " ".join(child.cmdline()):
                child.kill()
                return 1
    return 0


def section(runs: Sequence[Run], origin: str, twice: int, missing: int) -> str:
    before, ray, after = runs
    share = ray.rate / ((before.rate + after.rate) / 2)
    rows = [(r.name, f"{r.rows:,}", f"{r.rate:.1f}", f"{r.rows / r.seconds:.1f}", r.killed) for r in runs]
    verdict = "met" if share >= MIN_SHARE else "**missed**"
    return "\n\n".join(
        [
            f"{measured_on(machine.describe(machine.read_cpuinfo()))}: for one process with a thread for each core, "
            f"and for Ray with an engine for each, Ray's own work included. Rows: {origin}.",
            table(("run", "rows", "pairs/s", "pairs/s with the start", "workers killed"), rows),
            f"Rows that were written twice: {twice}; missing: {missing}.",
            f"Target: the rate through Ray as a share of one process's {share:.2f} (at least {MIN_SHARE}: {verdict}).",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
