"""python -m loadtests.load.sizing BUNDLE: one row of the table in docs/sizing.md, on cores of this machine."""

import asyncio
import os
import random
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

from tyro.conf import Positional, arg

from loadtests.load.front import scrape
from loadtests.payloads import VALIDATION, WORDS, Payloads, read_payloads
from loadtests.report import mebibytes, milliseconds, table
from loadtests.service_process import STARTER, Service, started
from loadtests.traffic import Tally, closed_loop, open_loop
from loadtests.wire import Client
from tinyrm.command_line import Positive, parse

CALLERS = 8
LOAD = 0.8
TIMEOUT_S = 600
TOKENS = re.compile(r'^tinyrm_tokens_total\{[^}]*kind="real"[^}]*\} (\S+)$', re.MULTILINE)
HEADS = (
    "bundle",
    "cores",
    "memory, started",
    "under load",
    "tokens a pair",
    "core-ms a pair",
    "pairs/s",
    "p50, ms",
    "p99, ms",
    "share of the cores",
)


@dataclass(frozen=True)
class Options:
    """Measure what a bundle needs and does: memory, pairs a second, and the latency at 80 % of that."""

    bundle: Annotated[Positional[Path], arg(metavar="BUNDLE")] = STARTER
    """Folder of the bundle."""
    cores: Positive = 1
    """Cores that the service may use; the load generator has all of them."""
    seconds: Positive = 30
    """Duration of each of the two parts."""
    pairs: Path = VALIDATION
    """Preference pairs to send; synthetic texts if the file is absent."""
    words: int = 0
    """Send synthetic texts instead: a prompt and two responses with so many words each."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m loadtests.load.sizing")
    payloads = of_words(options.words) if options.words else read_payloads(options.pairs)
    print(f"{payloads.origin}; load average {os.getloadavg()[0]:.1f}", flush=True)
    print(table(HEADS, [asyncio.run(measure(options, payloads))]))
    return 0


async def measure(options: Options, payloads: Payloads) -> list[str]:
    """Run a closed loop for the capacity, then an open loop at LOAD of it. Return the cells of a row."""
    contents, late = payloads.singles(), Tally()
    settings = {"model": options.bundle, "threads": options.cores, "max_wait_s": TIMEOUT_S}
    async with AsyncExitStack() as stack:
        with on_cores(options.cores):
            service = await stack.enter_async_context(started(**settings))
        client, idle_bytes = Client(service.port, timeout_s=TIMEOUT_S), service.rss_bytes()
        tokens, cpu_s, began = tokens_of(service), cpu_seconds(service), perf_counter()
        tally = await closed_loop(client, contents, CALLERS, options.seconds)
        seconds = perf_counter() - began
        tokens, cpu_s = tokens_of(service) - tokens, cpu_seconds(service) - cpu_s
        rate = tally.answered / seconds
        await open_loop(client, contents, LOAD * rate, late, seconds=options.seconds)
        client.close()
        busy_bytes = service.rss_bytes()
    if broken := tally.broken() + late.broken():
        raise SystemExit("; ".join(broken))
    return [
        options.bundle.name,
        str(options.cores),
        mebibytes(idle_bytes),
        mebibytes(busy_bytes),
        f"{tokens / tally.answered:,.0f}",
        f"{1e3 * cpu_s / tally.answered:,.1f}",
        f"{rate:.3g}",
        milliseconds(late.percentile_s(50)),
        milliseconds(late.percentile_s(99)),
        # Less than all of them: something else ran, or the service waited for the load generator.
        f"{cpu_s / seconds / options.cores:.0%}",
    ]


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Let the processes that are started meanwhile use `count` cores. This process has all of them again afterwards."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(usable)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def cpu_seconds(service: Service) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in service.tree()))


def tokens_of(service: Service) -> float:
    """Return how many tokens the service has scored."""
    _, page = scrape(service.port, 0.01)
    return sum(float(value) for value in TOKENS.findall(page))


def of_words(count: int) -> Payloads:
    """Return comparisons of random words, each text with `count` of them."""
    dice = random.Random(17)
    names = ("prompt", "response_a", "response_b")
    comparisons = [{name: " ".join(dice.choices(WORDS, k=count)) for name in names} for _ in range(256)]
    return Payloads(comparisons, f"synthetic comparisons of texts of {count} words")


if __name__ == "__main__":
    raise SystemExit(main())
