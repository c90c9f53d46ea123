"""Send requests in a closed or an open loop, and count the outcomes. `lost` must be 0."""

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle, takewhile
from time import perf_counter
from typing import Any

import numpy as np

from loadtests.wire import Client, NoAnswer, Reply, Unconnected

REFUSALS = (429, 503, 504)
# These must carry Retry-After. 504 is the caller's own deadline.
RETRIABLE = (429, 503)
SEED = 17
PEAK_CLIENTS = (8, 16, 32)


@dataclass(slots=True)
class Tally:
    """sent = answered + refused + failed + lost, once nothing is under way.

    refused: 429, 503, 504.
    failed: any other status but 200.
    lost: no complete HTTP reply.
    unconnected: no process listened, so nothing was sent.
    seconds: latency of the answered, counted from when the request was due.
    """

    sent: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    lost: int = 0
    unconnected: int = 0
    seconds: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0
    slowest_error_s: float = 0

    async def send(self, client: Client, content: bytes, due: float) -> Reply | None:
        """Send one request and count the outcome. Return the reply if there is one.

        due: on the performance counter; the clocks of event loops are coarse.
        """
        self.sent += 1
        try:
            reply = await client.send(content)
        except Unconnected:
            self.sent -= 1
            self.unconnected += 1
            return None
        except NoAnswer as error:
            self.lost += 1
            self.losses[str(error)] += 1
            return None
        self.count(reply, time.perf_counter() - due)
        return reply

    def count(self, reply: Reply, seconds: float) -> None:
        if reply.status == 200:
            self.answered += 1
            self.seconds.append(seconds)
            return
        self.kinds[f"{reply.status} {error_type(reply)}"] += 1
        self.slowest_error_s = max(self.slowest_error_s, seconds)
        if reply.status in RETRIABLE and not reply.headers.get("retry-after", "").isdigit():
            self.without_retry_after += 1
        if reply.status in REFUSALS:
            self.refused += 1
        else:
            self.failed += 1

    def percentile_s(self, percent: float) -> float | None:
        return float(np.percentile(self.seconds, percent)) if self.seconds else None

    def record(self) -> dict[str, Any]:
        """Return all counts, as results/*.json has them."""
        counts = {
            name: getattr(self, name) for name in ("sent", "answered", "refused", "failed", "lost", "unconnected")
        }
        return counts | {
            "p50_s": self.percentile_s(50),
            "p99_s": self.percentile_s(99),
            "slowest_error_s": self.slowest_error_s,
            "kinds": dict(self.kinds),
            "losses": dict(self.losses),
            "without_retry_after": self.without_retry_after,
        }

    def broken(self) -> list[str]:
        """Return the broken promises of every case: lost requests, and refusals without a Retry-After."""
        found = []
        if self.lost:
            found.append(f"{self.lost} requests lost: {dict(self.losses)}")
        if self.without_retry_after:
            found.append(f"{self.without_retry_after} refusals without Retry-After")
        if self.sent != self.answered + self.refused + self.failed + self.lost:
            found.append("the counts do not add up")
        return found


def error_type(reply: Reply) -> str:
    """Return the stable type of an error; empty if the body has none."""
    try:
        return str(json.loads(reply.body)["error"]["type"])
    except (ValueError, KeyError, TypeError):
        return ""


async def closed_loop(client: Client, requests: Sequence[bytes], callers: int, seconds: float) -> Tally:
    """Run `callers` at once; each sends its next request after the reply to the last."""
    tally, end = Tally(), perf_counter() + seconds
    await call(client, takewhile(lambda _: perf_counter() < end, cycle(requests)), callers, tally)
    return tally


async def call(client: Client, requests: Iterable[bytes], callers: int, tally: Tally) -> None:
    """Send each request once, in order, from a closed loop of `callers`."""
    contents = iter(requests)

    async def send_the_next() -> None:
        for content in contents:
            await tally.send(client, content, perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(send_the_next())


async def peak_rate(client: Client, requests: Sequence[bytes], seconds: float) -> float:
    """Return the capacity: responses a second in the best of several closed loops."""
    rates = []
    for callers in PEAK_CLIENTS:
        started = perf_counter()
        tally = await closed_loop(client, requests, callers, seconds)
        rates.append(tally.answered / (perf_counter() - started))
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
    """Send `rate` requests a second as a Poisson process, whether or not earlier ones are answered.

    Returns when all are. Latency counts from when a request was due: a generator that falls behind shows in the
    latency, not in the rate.
    """
    dice, contents = random.Random(SEED), cycle(requests)
    due = started = perf_counter()
    async with asyncio.TaskGroup() as group:
        while due - started < seconds and not (stop and stop.is_set()):
            # Also when behind: the replies must be read.
            await asyncio.sleep(max(0, due - perf_counter()))
            group.create_task(tally.send(client, next(contents), due))
            due += dice.expovariate(rate)


@asynccontextmanager
async def background(client: Client, requests: Sequence[bytes], rate: float) -> AsyncIterator[Tally]:
    """Run an open loop meanwhile. The tally is complete at the end: every reply is in."""
    tally, stop = Tally(), asyncio.Event()
    task = asyncio.create_task(open_loop(client, requests, rate, tally, stop=stop))
    try:
        yield tally
    finally:
        stop.set()
        await task
