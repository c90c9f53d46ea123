"""The service is asked to leave, or is killed and started again."""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from loadtests.arrivals import background
from loadtests.chaos.case import OVERLOADED, PATIENCE_S, READY_TIMEOUT_S, Context, Outcome, is_well
from loadtests.chaos.engine import lives
from loadtests.service_process import Service, free_port, launch
from loadtests.wire import Client

SHARE_OF_CAPACITY = 0.8
GRACE_S = 5


async def terminated(context: Context) -> Outcome:
    """SIGTERM under load: what was accepted is answered or told so, and the exit code is 0."""
    outcome, extent = Outcome(), context.extent
    drain_timeout_s = float(context.known["drain_timeout_s"])
    async with context.service() as service:
        outcome.rss_before_bytes = service.rss_bytes()
        # A connection each: a request on an idle one that the service is closing says nothing about the service.
        client = Client(service.port, keep_alive=False, timeout_s=PATIENCE_S + drain_timeout_s)
        rate = SHARE_OF_CAPACITY * context.capacity_per_s
        async with background(client, context.payloads.singles(), rate) as outcome.tally:
            await asyncio.sleep(extent.load_s / 2)
            begun = time.perf_counter()
            code = await service.stop(drain_timeout_s + 2 * GRACE_S)
            outcome.expect_within("left", time.perf_counter() - begun, drain_timeout_s + GRACE_S)
    outcome.expect(f"exit code 0, was {code}", code == 0)
    outcome.expect_kinds(["503 shutting_down"])
    outcome.notes["came too late to connect"] = str(outcome.tally.unconnected)
    return outcome


async def killed_and_restarted(context: Context) -> Outcome:
    """SIGKILL under load, then a new service on the same port: ready soon, and nothing of the old one is left."""
    outcome, port = Outcome(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        first = launch(context.settings, Path(folder) / "first.log", port)
        try:
            await first.wait_ready()
            children = await killed_under_load(first, context, outcome)
        finally:
            first.clear_away()
        begun = time.perf_counter()
        second = launch(context.settings, Path(folder) / "second.log", port)
        try:
            await second.wait_ready(READY_TIMEOUT_S)
            outcome.expect_within("ready again", time.perf_counter() - begun, context.extent.restart_within_s)
            await serves_under_load(second, context, outcome)
            outcome.expect("no process of the killed service is left", not any(map(lives, children)))
        finally:
            second.clear_away()
            clear_away(children)
    outcome.expect_kinds(OVERLOADED)
    return outcome


async def killed_under_load(service: Service, context: Context, outcome: Outcome) -> list[psutil.Process]:
    """The children that the service left behind. What the kill cut off is noted, and is nobody's loss."""
    client = Client(service.port, timeout_s=PATIENCE_S)
    rate = SHARE_OF_CAPACITY * context.capacity_per_s
    async with background(client, context.payloads.singles(), rate) as cut:
        await asyncio.sleep(context.extent.load_s / 3)
        children = service.kill()
    outcome.notes["cut by the kill"] = f"{cut.lost} of {cut.sent} requests"
    return children


async def serves_under_load(service: Service, context: Context, outcome: Outcome) -> None:
    client = Client(service.port, timeout_s=PATIENCE_S)
    outcome.rss_before_bytes = service.rss_bytes()
    rate = SHARE_OF_CAPACITY / 2 * context.capacity_per_s
    async with background(client, context.payloads.singles(), rate) as outcome.tally:
        await asyncio.sleep(context.extent.load_s / 3)
    outcome.rss_after_bytes = service.rss_bytes()
    await is_well(service, context.payloads, outcome)


def clear_away(children: Sequence[psutil.Process]) -> None:
    for child in filter(lives, children):
        child.kill()
