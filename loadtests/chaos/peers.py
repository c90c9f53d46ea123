"""infinity_emb under the same treatment, if its environment exists. What it breaks is reported and fails nothing."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from loadtests.bench.contenders import INFINITY
from loadtests.bench.workers.infinity_http import start
from loadtests.bench.workers.serving import Server
from loadtests.chaos.case import CLIENT_TIMEOUT_S, Context, Outcome, Skipped
from loadtests.chaos.clients import SHARE_OF_CAPACITY, leave_in_masses
from loadtests.chaos.overload import TIMES_CAPACITY
from loadtests.traffic import background, open_loop, peak_rate
from loadtests.wire import Client, request

CROSS_ENCODER = Path("runs/bench/cross-encoders/modernbert")
PEAK_S = 3


async def infinity_overload(context: Context) -> Outcome:
    """Several times its own capacity."""
    async with infinity(context) as (server, client, requests, outcome):
        peak = await peak_rate(client, requests, PEAK_S)
        outcome.rss_before_bytes = rss_bytes(server)
        started_at = time.perf_counter()
        await open_loop(client, requests, TIMES_CAPACITY * peak, outcome.tally, seconds=context.extent.load_s)
        goodput = outcome.tally.answered / (time.perf_counter() - started_at)
        outcome.rss_after_bytes = rss_bytes(server)
        outcome.notes["goodput"] = f"{goodput / peak:.2f} of its peak of {peak:.1f} /s"
    return outcome


async def infinity_vanishing(context: Context) -> Outcome:
    """Clients that leave in the middle of a request."""
    async with infinity(context) as (server, client, requests, outcome):
        peak = await peak_rate(client, requests, PEAK_S)
        outcome.rss_before_bytes = rss_bytes(server)
        async with background(client, requests, SHARE_OF_CAPACITY * peak) as outcome.tally:
            masses = leave_in_masses(server.port, requests, context.extent.clients)
            await asyncio.gather(masses, asyncio.sleep(context.extent.load_s))
        outcome.rss_after_bytes = rss_bytes(server)
        outcome.notes["vanished"] = f"{context.extent.clients} clients"
    return outcome


@asynccontextmanager
async def infinity(context: Context) -> AsyncIterator[tuple[Server, Client, list[bytes], Outcome]]:
    """Run its server. Its input is the text of a whole comparison, so that it reads as much as ours."""
    if not context.extent.with_peers:
        raise Skipped("other servers are left out")
    for needed in (INFINITY, CROSS_ENCODER):
        if not await asyncio.to_thread(needed.exists):
            raise Skipped(f"{needed} does not exist (`make bench` makes it)")
    requests = []
    for comparison in context.payloads.comparisons:
        prompt, *responses = map(str, comparison.values())
        body = {"model": "bench", "query": prompt, "documents": ["\n".join(responses)]}
        requests.append(request("/rerank", json.dumps(body).encode()))
    server = start(CROSS_ENCODER, INFINITY)
    try:
        await asyncio.to_thread(server.wait)
        yield server, Client(server.port, timeout_s=CLIENT_TIMEOUT_S), requests, Outcome()
    finally:
        server.close()


def rss_bytes(server: Server) -> int:
    root = psutil.Process(server.pid)
    return sum(process.memory_info().rss for process in [root, *root.children(recursive=True)])
