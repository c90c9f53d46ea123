"""python -m loadtests.load.repeats: a GRPO-shaped load whose responses repeat, with and without reuse of sequences."""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.payloads import WORDS
from loadtests.report import table
from loadtests.service_process import STARTER, started
from tinyrm.client import AsyncClient
from tinyrm.command_line import parse

# In turns, so that a slow minute of the machine reaches each of them. The first one has nothing to reuse.
LOADS = ("no repeats", "repeats", "repeats, window")


@dataclass(frozen=True)
class Options:
    """Score groups of responses as a trainer does, some of them equal, and padded by repeated groups."""

    model: Path = STARTER
    """Bundle to serve."""
    groups: int = 8
    """Groups of one step, each with another prompt."""
    size: int = 16
    """Responses of a group."""
    repeated: float = 0.3
    """Share of the responses that repeat another one of their group."""
    padding: int = 2
    """Groups that repeat others to fill the step, as verl pads a batch."""
    tokens: int = 100
    """Words of a response."""
    rounds: int = 3
    """Steps of each kind, which take turns."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m loadtests.load.repeats")
    print(asyncio.run(measure(options)))
    return 0


async def measure(options: Options) -> str:
    dice = random.Random(17)
    seconds: dict[str, list[float]] = {load: [] for load in LOADS}
    async with started(model=options.model) as plain, started(model=options.model, reuse_s=600) as kept:
        services = {"no repeats": plain, "repeats": plain, "repeats, window": kept}
        for _ in range(options.rounds):
            for load, service in services.items():
                step = groups(options, dice, 0.0 if load == "no repeats" else options.repeated)
                async with AsyncClient(f"http://127.0.0.1:{service.port}", timeout_s=600) as client:
                    began = time.perf_counter()
                    await asyncio.gather(*(client.rewards(**one) for one in step))
                    seconds[load].append(time.perf_counter() - began)
    base = statistics.median(seconds["no repeats"])
    rows = [
        (
            load,
            f"{statistics.median(one):.2f} s",
            f"{min(one):.2f} to {max(one):.2f} s",
            f"{statistics.median(one) / base:.2f}",
        )
        for load, one in seconds.items()
    ]
    return table(("load", "a step, median", "spread", "of no repeats"), rows)


def groups(options: Options, dice: random.Random, repeated: float) -> list[dict[str, Any]]:
    """Return the groups of a step; without repeats, as many groups, all of them different."""

    def text() -> str:
        return " ".join(dice.choices(WORDS, k=options.tokens))

    def responses() -> Sequence[str]:
        distinct = [text() for _ in range(max(1, round(options.size * (1 - repeated))))]
        return [*distinct, *dice.choices(distinct, k=options.size - len(distinct))]

    step = [{"prompt": text(), "responses": responses()} for _ in range(options.groups)]
    padding = [{"prompt": text(), "responses": responses()} for _ in range(options.padding)]
    return step + (step[: options.padding] if repeated else padding)


if __name__ == "__main__":
    raise SystemExit(main())
