"""When requests are sent: once the last was answered (closed loop), or by the clock, come what may (open loop)."""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

from loadtests.tally import Tally
from loadtests.wire import Client

SEED = 17
PEAK_CLIENTS = (8, 16, 32)


async def closed_loop(client: Client, requests: Sequence[bytes], clients: int, seconds: float) -> Tally:
    """So many callers, each of whom asks again when it has its answer."""
    tally, todo = Tally(), repeated(requests)
    end = perf_counter() + seconds

    async def caller() -> None:
        while perf_counter() < end:
            await tally.ask(client, next(todo), perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(caller())
    return tally


async def peak_rate(client: Client, requests: Sequence[bytes], seconds: float) -> float:
    """Answers a second at the best of several numbers of callers: the capacity."""
    rates = []
    for clients in PEAK_CLIENTS:
        begun = perf_counter()
        tally = await closed_loop(client, requests, clients, seconds)
        rates.append(tally.answered / (perf_counter() - begun))
    return max(rates)


async def open_loop(
    client: Client,
    requests: Sequence[bytes],
    rate: float,
    tally: Tally,
    *,
    seconds: float = math.inf,
    stop: asyncio.Event | None = None,
) -> None:
    """Poisson arrivals at `rate` a second, whether or not earlier ones were answered. Ends when all are.

    Time counts from when a request was due: a generator that falls behind shows in the latency, not in the rate.
    """  # fmt: skip
    dice, todo = random.Random(SEED), repeated(requests)
    due = begun = perf_counter()
    async with asyncio.TaskGroup() as group:
        while due - begun < seconds and not (stop and stop.is_set()):
            # Also when behind: the answers have to be read.
            await asyncio.sleep(max(0, due - perf_counter()))
            group.create_task(tally.ask(client, next(todo), due))
            due += dice.expovariate(rate)


@asynccontextmanager
async def background(client: Client, requests: Sequence[bytes], rate: float) -> AsyncIterator[Tally]:
    """Load while something else happens; complete, with every answer in, at the end."""
    tally, stop = Tally(), asyncio.Event()
    task = asyncio.create_task(open_loop(client, requests, rate, tally, stop=stop))
    try:
        yield tally
    finally:
        stop.set()
        await task


def repeated(requests: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from requests
