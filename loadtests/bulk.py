"""python -m loadtests.bulk: a preference set scored in one process and through Ray, where a worker is killed midway."""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from loadtests.bench import machine
from loadtests.payloads import synthetic
from loadtests.record import write
from loadtests.service_process import STARTER
from loadtests.texts import table
from tinyrm.pairs import read_pairs

TRAIN = Path("data/train.jsonl.gz")
DOCUMENT = Path("docs/scaling.md")
HEADING = "## A whole preference set"
# Ray costs the most where a pair takes the least.
SHORTEST_SHARE = 0.4
LEAST_SHARE = 0.9
PARTS = 80
RATE = re.compile(r"([\d.]+) s, ([\d.]+) pairs/s")


@dataclass(frozen=True, slots=True)
class Leg:
    """One run of the command. seconds: of the whole process. rate: as the command says it, of what was new."""

    name: str
    rows: int
    rate: float
    seconds: float
    killed: int = 0

    @property
    def whole_rate(self) -> float:
        return self.rows / self.seconds


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    rows, origin = pairs_of(options.pairs, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        legs, counts = measure(rows, Path(folder), options)
    twice, missing = sum(n - 1 for n in counts.values()), len(rows) - len(counts)
    text = section(legs, origin, twice, missing)
    print(text, flush=True)
    if not options.no_write:
        write({"origin": origin, "legs": [asdict(leg) for leg in legs]}, "bulk", HEADING, text, options.document)
    for line in (f"{twice} rows twice", f"{missing} rows missing"):
        if not line.startswith("0 "):
            print(line, file=sys.stderr)
    return 1 if twice or missing else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bulk", description=__doc__)
    parser.add_argument("--model", type=Path, default=STARTER, help="bundle")
    parser.add_argument("--pairs", type=Path, default=TRAIN, help="preference set; synthetic texts if it is absent")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--engines", type=int, default=2, help="of one CPU each; in one process, as many threads")
    parser.add_argument("--no-write", action="store_true", help="print, and leave the document as it is")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def pairs_of(path: Path, rows: int) -> tuple[list[dict[str, Any]], str]:
    """The shortest pairs of a file in an order of chance, each as often as it takes; an id makes each row its own."""
    if path.is_file():
        found = sorted(read_pairs(path), key=lambda pair: len(pair.prompt) + len(pair.chosen) + len(pair.rejected))
        short = [pair.model_dump(include={"prompt", "chosen", "rejected"}) for pair in found]
        short = short[: max(1, int(len(short) * SHORTEST_SHARE))]
        origin = f"the {len(short):,} shortest pairs of {path}, again and again"
    else:
        short, origin = synthetic(rows), f"synthetic texts ({path} is absent)"
    random.Random(17).shuffle(short)
    return [{"id": f"x{n}", **pair} for n, pair in enumerate(islice(cycle(short), rows))], origin


def measure(
    rows: Sequence[dict[str, Any]], folder: Path, options: argparse.Namespace
) -> tuple[list[Leg], "Counter[tuple[str, int]]"]:
    """One process before and after Ray, on a part of the rows: a machine that changes meanwhile would be seen."""
    whole, part = save(folder / "whole.jsonl", rows), save(folder / "part.jsonl", rows[:: max(1, options.engines * 2)])
    # What a dead worker had begun is done again: small parts lose little.
    rows_per_part = max(1, len(rows) // PARTS)
    common = ("--bundle", options.model, "--engine", "onnxruntime-cpu", "--rows-per-part", rows_per_part)
    here = (*common, "--threads", options.engines)
    there = (*common, "--cpus-per-engine", 1, "--engines", options.engines, "--ray")
    legs = [
        leg("one process", part, folder / "before", here),
        leg("Ray, a worker killed", whole, folder / "ray", there, kill_midway(folder / "ray", len(rows))),
        leg("one process again", part, folder / "after", here),
    ]
    written = pq.read_table(folder / "ray", columns=["source", "row", "error"]).to_pylist()
    return legs, Counter((row["source"], row["row"]) for row in written if row["error"] is None)


def save(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def leg(
    name: str, pairs: Path, out: Path, words: Sequence[object], meanwhile: Callable[[int], int] | None = None
) -> Leg:
    """meanwhile: given the command's pid, does harm and says how often."""
    command = [sys.executable, "-m", "tinyrm.cli", "score", pairs, "--out", out]
    print(f"measuring: {name}", flush=True)
    began, killed = time.monotonic(), 0
    process = subprocess.Popen([*map(str, [*command, *words])], stderr=subprocess.PIPE, text=True)  # noqa: S603
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    listener.start()
    if meanwhile:
        killed = meanwhile(process.pid)
    process.wait()
    listener.join()
    found = RATE.search("".join(said))
    if process.returncode or not found:
        raise RuntimeError(f"the command left with {process.returncode}: {''.join(said)}")
    rows = sum(1 for _ in pairs.open(encoding="utf-8"))
    return Leg(name, rows, float(found[2]), time.monotonic() - began, killed)


def kill_midway(out: Path, rows: int) -> Callable[[int], int]:
    """SIGKILL for one of Ray's workers when half of the rows are written."""

    def kill(pid: int) -> int:
        while (
            psutil.pid_exists(pid) and sum(pq.read_metadata(part).num_rows for part in out.glob("*.parquet")) < rows / 2
        ):
            time.sleep(0.2)
        workers = [
            one for one in psutil.Process(pid).children(recursive=True) if "MapWorker" in " ".join(one.cmdline())
        ]
        workers[0].kill()
        return 1

    return kill


def section(legs: Sequence[Leg], origin: str, twice: int, missing: int) -> str:
    before, there, after = legs
    here = (before.rate + after.rate) / 2
    rows = [(leg.name, f"{leg.rows:,}", f"{leg.rate:.1f}", f"{leg.whole_rate:.1f}", str(leg.killed)) for leg in legs]
    host = machine.describe(machine.read_cpuinfo())
    verdict = "met" if there.rate / here >= LEAST_SHARE else "**missed**"
    return "\n\n".join(
        [
            f"Measured on {host['cpu']} (family {host['family']}, model {host['model']}), {host['cores']} cores: for "
            "one process with a thread for each, and for Ray, with an engine for each, and what it needs. "
            f"Rows: {origin}.",
            table(("run", "rows", "pairs/s", "pairs/s with the start", "workers killed"), rows),
            f"Rows that were written twice: {twice}; missing: {missing}.",
            f"Target: the rate through Ray as a share of one process's {there.rate / here:.2f} "
            f"(at least {LEAST_SHARE}: {verdict}).",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
