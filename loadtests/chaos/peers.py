"""infinity_emb under the same treatment, where its environment exists. What it breaks is reported and fails nothing."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from loadtests.arrivals import background, open_loop, peak_rate
from loadtests.bench.contenders import INFINITY
from loadtests.bench.workers.infinity_http import Server
from loadtests.chaos.case import PATIENCE_S, Context, Outcome, Skipped
from loadtests.chaos.clients import SHARE_OF_CAPACITY, leave_in_masses
from loadtests.chaos.queue import TIMES_CAPACITY
from loadtests.wire import Client, request

CLASSIFIER = Path("runs/bench/classifiers/starter")
PEAK_S = 3


async def infinity_overload(context: Context) -> Outcome:
    """Several times its own capacity."""
    outcome, requests = Outcome(), bodies(context)
    async with infinity(context) as server:
        peak = await peak_rate(Client(server.port, timeout_s=PATIENCE_S), requests, PEAK_S)
        outcome.rss_before_bytes = rss_bytes(server)
        client = Client(server.port, timeout_s=PATIENCE_S)
        begun = time.perf_counter()
        await open_loop(client, requests, TIMES_CAPACITY * peak, outcome.tally, seconds=context.extent.load_s)
        took_s = time.perf_counter() - begun
        outcome.rss_after_bytes = rss_bytes(server)
    outcome.notes["goodput"] = f"{outcome.tally.answered / took_s / peak:.2f} of its peak of {peak:.1f} /s"
    return outcome


async def infinity_vanishing(context: Context) -> Outcome:
    """Clients that leave in the middle."""
    outcome, requests = Outcome(), bodies(context)
    async with infinity(context) as server:
        client = Client(server.port, timeout_s=PATIENCE_S)
        peak = await peak_rate(client, requests, PEAK_S)
        outcome.rss_before_bytes = rss_bytes(server)
        async with background(client, requests, SHARE_OF_CAPACITY * peak) as outcome.tally:
            masses = leave_in_masses(server.port, requests, context.extent.clients)
            await asyncio.gather(masses, asyncio.sleep(context.extent.load_s))
        outcome.rss_after_bytes = rss_bytes(server)
    outcome.notes["vanished"] = f"{context.extent.clients} clients"
    return outcome


async def infinity_engine(_: Context) -> Outcome:
    """An exception in its engine, which is a thread of its only process."""
    raise Skipped(
        "infinity_emb runs its engine in a thread: nothing from outside makes that fail and leaves the server"
    )


@asynccontextmanager
async def infinity(context: Context) -> AsyncIterator[Server]:
    if not context.extent.with_peers:
        raise Skipped("the other servers were left out")
    for needed in (INFINITY, CLASSIFIER):
        if not await asyncio.to_thread(needed.exists):
            raise Skipped(f"{needed} does not exist (`make bench` makes it)")
    server = Server(CLASSIFIER, INFINITY)
    try:
        await asyncio.to_thread(server.wait)
        yield server
    finally:
        server.close()


def bodies(context: Context) -> list[bytes]:
    """The texts of a comparison as one input: what the other server reads of it is as long."""
    texts = ["\n".join(map(str, comparison.values())) for comparison in context.payloads.comparisons]
    return [request("/classify", json.dumps({"model": "bench", "input": [text]}).encode()) for text in texts]


def rss_bytes(server: Server) -> int:
    root = psutil.Process(server.pid)
    total: int = sum(process.memory_info().rss for process in [root, *root.children(recursive=True)])
    return total
