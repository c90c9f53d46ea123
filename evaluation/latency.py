"""python -m evaluation.latency: how long a comparison of a given size takes on this machine, one at a time.

Real pairs, as near to the size as the file has them. The models take turns at every pair, so that what else the machine
does meets both. Engine time is that of the model alone; a decision also includes encoding.
"""

import json
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from evaluation.card import refuse_half_a_section, update_card
from evaluation.report import table
from tinyrm.bundle import read_manifest, record_evaluation, sha256
from tinyrm.command_line import Positive, parse
from tinyrm.encoding import Encoding
from tinyrm.engines import Engine, EngineInfo
from tinyrm.engines.base import usable_cpus
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.manifest import CARD_FILE
from tinyrm.output import standard_output
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.scorer import Scorer

SECTION = "latency"
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Options:
    """Time a bundle, and another one beside it, on pairs of one size."""

    bundle: Positional[Path]
    """Bundle folder."""
    pairs: Path
    """Preference pairs, of which those of about the size are timed."""
    against: Path | None = None
    """Another bundle, timed on the same pairs."""
    tokens: Positive = 200
    """Tokens of prompt and both responses together, as the bundle's tokenizer counts them."""
    count: Positive = 20
    """Pairs."""
    rounds: Positive = 15
    """Times that each pair is decided, after one that does not count."""
    engine: str = "auto"
    """Engine to time."""
    threads: int = 0
    """Threads of the engine; 0 for all usable processors."""
    record: bool = False
    """Write the result into the bundle's manifest."""
    card: bool = False
    """Write the table into the bundle's README.md."""


@dataclass(slots=True)
class Stopwatch:
    """An engine that adds up its seconds, sequences and tokens."""

    engine: Engine
    seconds: float = 0.0
    sequences: int = 0
    tokens: int = 0

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        started = time.perf_counter()
        logits = self.engine.run(sequences)
        self.seconds += time.perf_counter() - started
        self.sequences += len(sequences)
        self.tokens += sum(map(len, sequences))
        return logits


@dataclass(slots=True)
class Runner:
    """A bundle under the watch, and the seconds of each decision so far."""

    identity: str
    scorer: Scorer
    watch: Stopwatch
    engine_s: list[float] = field(default_factory=list)
    decision_s: list[float] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, options: Options) -> "Runner":
        scorer = Scorer.open(folder, options.engine, threads=options.threads)
        watch = Stopwatch(scorer.engine)
        return cls(read_manifest(folder).identity, replace(scorer, engine=watch), watch)

    def decide(self, pair: PreferencePair) -> None:
        """Decide a pair as a caller of the library does, in both orders if the model has them."""
        before, started = self.watch.seconds, time.perf_counter()
        self.scorer.compare(pair.prompt, pair.chosen, pair.rejected)
        self.decision_s.append(time.perf_counter() - started)
        self.engine_s.append(self.watch.seconds - before)

    def forget(self) -> None:
        """Drop what was measured so far."""
        self.watch.seconds, self.watch.sequences, self.watch.tokens = 0.0, 0, 0
        self.engine_s, self.decision_s = [], []

    def figures(self) -> dict[str, Any]:
        """Return medians and 95th percentiles in milliseconds, and what a decision reads."""
        decisions = len(self.engine_s)
        times = {"engine": self.engine_s, "decision": self.decision_s}
        return {
            "model": self.identity,
            "engine": self.watch.info.name,
            "reads": self.scorer.encoder.reads,
            "sequences": self.watch.sequences / decisions,
            "tokens": self.watch.tokens / decisions,
        } | {
            f"{name}_ms": {"p50": 1e3 * float(np.median(seconds)), "p95": 1e3 * float(np.percentile(seconds, 95))}
            for name, seconds in times.items()
        }


def nearest(pairs: Sequence[PreferencePair], scorer: Scorer, tokens: int, count: int) -> list[PreferencePair]:
    """Return the pairs whose texts have about so many tokens together, as the model's tokenizer counts them."""
    texts = [scorer.encoder.tokenize("", pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
    lengths = np.array([len(each.prompt) + sum(map(len, each.responses)) for each in texts])
    order = np.argsort(np.abs(lengths - tokens), kind="stable")[:count]
    return [pairs[place] for place in order]


def measure(options: Options) -> dict[str, Any]:
    """Return the figures of each model, and the ratio of their engine times. Raises TinyRMError."""
    pairs = read_pairs(options.pairs)
    if not pairs:
        raise InvalidInput(f"{options.pairs} holds no pairs")
    if options.card:
        refuse_half_a_section(options.bundle / CARD_FILE, SECTION)
    runners = [Runner.open(folder, options) for folder in (options.bundle, options.against) if folder]
    chosen = nearest(pairs, runners[0].scorer, options.tokens, options.count)
    for number in range(1 + options.rounds):
        for pair in chosen:
            for runner in runners:
                runner.decide(pair)
        if number == 0:
            for runner in runners:
                runner.forget()
    models = [runner.figures() for runner in runners]
    return {
        "tokens": options.tokens,
        "pairs": len(chosen),
        "pairs_sha256": sha256(options.pairs),
        "rounds": options.rounds,
        "processors": options.threads or usable_cpus(),
        "cpu": cpu_name(),
        "models": models,
        "ratio": models[0]["engine_ms"]["p50"] / models[1]["engine_ms"]["p50"] if options.against else None,
    }


def cpu_name(path: Path = CPUINFO) -> str:
    """Return the model of the processor, or its architecture where the system does not say more."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def markdown(result: dict[str, Any]) -> str:
    rows = [
        [
            each["model"],
            each["reads"],
            f"{each['sequences']:.0f}",
            f"{each['tokens']:.0f}",
            *(f"{each[name]['p50']:.1f} ({each[name]['p95']:.1f})" for name in ("engine_ms", "decision_ms")),
        ]
        for each in result["models"]
    ]
    columns = ("model", "reads", "sequences", "tokens read", "engine, ms (p95)", "decision, ms (p95)")
    where = (
        f"A pair of about {result['tokens']} tokens, one at a time, on {result['processors']} processors "
        f"({result['cpu']}): medians of {result['pairs']} pairs, each {result['rounds']} times."
    )
    ratio = f" The engine takes {result['ratio']:.2f} times as long as the other's." if result["ratio"] else ""
    return f"{table(columns, rows)}\n\n{where}{ratio}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure with the options of a command line, by default this process's. Return the exit code."""
    options = parse(Options, arguments, prog="python -m evaluation.latency")
    try:
        result = measure(options)
        text = markdown(result)
        print(f"{text}\n\n{json.dumps(result)}", flush=True)
        if options.record:
            record_evaluation(options.bundle, {SECTION: result})
        if options.card:
            update_card(options.bundle / CARD_FILE, text, SECTION)
    except (TinyRMError, OSError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
