"""python -m loadtests.bench.sets: what a decision costs a model that reads pairs, responses, or sets.

Engine time alone, on bundles of one size, ids drawn at random: a comparison of two responses, and groups to one prompt.
The ways take turns within each round, so that what else the machine does meets all of them.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from loadtests import machine
from tinyrm.bundle import Bundle
from tinyrm.command_line import parse
from tinyrm.encoding import Encoding, SpecialTokens, Truncation
from tinyrm.engines import Engine, EngineOptions, open_engine
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.files import write_atomically
from tinyrm.output import standard_output

# Of a round robin's sequences so many run, and the time is scaled: they are all of one length.
ROUND_ROBIN_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """Time the ways to read on bundles of one size."""

    sets: tuple[Path, ...]
    """Bundles that read sets."""
    pointwise: Path
    """Bundle that reads responses alone."""
    pairwise: Path
    """Bundle that reads pairs."""
    prompt: int = 400
    """Tokens of the prompt; with a response, no more than the bundles take."""
    response: int = 200
    """Tokens of a response."""
    rounds: int = 5
    """Runs of each case, of which the median counts."""
    threads: int = 0
    """Threads of an engine; 0 for all processors."""
    out: Path | None = None
    """File for the results as JSON; results of other sizes in it stay."""


@dataclass(frozen=True, slots=True)
class Way:
    """A bundle on an engine."""

    name: str
    bundle: Bundle
    engine: Engine

    @classmethod
    def open(cls, folder: Path, reads: str, threads: int) -> "Way":
        bundle = Bundle.open(folder)
        if bundle.manifest.reads != reads:
            raise InvalidInput(f"{folder} reads a {bundle.manifest.reads}; name a bundle that reads a {reads}")
        sets = bundle.manifest.head.sets
        name = f"set, others: {sets.others}" if sets else {"pair": "pair, both orders", "response": "response"}[reads]
        return cls(name, bundle, open_engine(bundle, EngineOptions("onnxruntime-cpu", threads=threads)))

    def sequences(self, prompt: int, response: int, count: int) -> list[Encoding]:
        """Return what this way reads to decide between `count` responses."""
        special, vocab = self.bundle.manifest.special_tokens, self.bundle.manifest.geometry.vocab
        dice = np.random.default_rng(0)

        def words(tokens: int) -> list[int]:
            ids: list[int] = dice.integers(min(1000, vocab // 2), vocab, tokens).tolist()
            return ids

        if self.bundle.manifest.reads == "set":
            parts = [i for _ in range(count) for i in (*words(response), special.mask, special.sep)]
            return [encoding([special.cls, *words(prompt), special.sep, *parts])]
        if self.bundle.manifest.reads == "response":
            return [
                encoding([special.cls, *words(prompt), special.sep, *words(response), special.sep])
                for _ in range(count)
            ]
        return [pair(special, words(prompt + 2 * response)) for _ in range(count * (count - 1))]


def encoding(ids: Sequence[int]) -> Encoding:
    return Encoding(np.array(ids, dtype=np.int64), Truncation())


def pair(special: SpecialTokens, words: Sequence[int]) -> Encoding:
    half = len(words) // 2
    return encoding([special.cls, *words[:half], special.sep, *words[half:], special.mask, special.sep])


def measure(ways: Sequence[Way], options: Options, responses: int) -> dict[str, Any]:
    """Return the median seconds and the sequences of each way to decide between so many responses."""
    work, scale = {}, {}
    for way in ways:
        sequences = way.sequences(options.prompt, options.response, responses)
        kept = sequences if len(sequences) <= 24 else sequences[: round(ROUND_ROBIN_SHARE * len(sequences))]
        work[way.name], scale[way.name] = kept, len(sequences) / len(kept)
        way.engine.run(kept[:1])
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(options.rounds):
        for way in ways:
            started = time.perf_counter()
            for start in range(0, len(work[way.name]), 2):
                way.engine.run(work[way.name][start : start + 2])
            seconds[way.name].append((time.perf_counter() - started) * scale[way.name])
    return {
        "responses": responses,
        "ways": {
            name: {
                "sequences": round(len(work[name]) * scale[name]),
                "median_s": float(np.median(times)),
                "spread_s": [min(times), max(times)],
                "scaled_by": scale[name],
            }
            for name, times in seconds.items()
        },
    }


def markdown(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return a table; the ratios are those of medians, to the response by response and to the pairs."""
    rows = []
    for case in cases:
        medians = {name: way["median_s"] for name, way in case["ways"].items()}
        for name, way in case["ways"].items():
            rows.append(
                [
                    case["responses"],
                    name,
                    way["sequences"],
                    f"{1000 * way['median_s']:,.1f}",
                    *(f"{medians[name] / medians[other]:.2f}" for other in ("response", "pair, both orders")),
                ]
            )
    columns = ["responses", "way", "sequences", "ms", "/ response", "/ pair"]
    return tabulate(rows, columns, tablefmt="pipe", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says, by default this process's. Return the exit code."""
    options = parse(Options, arguments, prog="python -m loadtests.bench.sets")
    try:
        ways = [
            *(Way.open(folder, "set", options.threads) for folder in options.sets),
            Way.open(options.pointwise, "response", options.threads),
            Way.open(options.pairwise, "pair", options.threads),
        ]
        cases = []
        for responses in (2, 8, 16):
            cases.append(measure(ways, options, responses))
            print(f"{responses} responses measured", file=sys.stderr, flush=True)
        print(markdown(cases), flush=True)
        if options.out:
            write_results(options, ways, cases)
    except (TinyRMError, OSError) as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 1
    return 0


def write_results(options: Options, ways: Sequence[Way], cases: Sequence[dict[str, Any]]) -> None:
    """Add these results to the file, under the size of the models."""
    assert options.out  # noqa: S101 - the caller's condition
    geometry = ways[0].bundle.manifest.geometry
    size = f"{geometry.layers} layers of {geometry.hidden}, prompt {options.prompt}, responses {options.response}"
    known: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    known[size] = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(machine.read_cpuinfo()),
        "threads": options.threads,
        "cases": list(cases),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
