"""The engine's process dies or hangs while requests wait for it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import psutil

from loadtests.arrivals import background
from loadtests.chaos.case import (
    OVERLOADED,
    PATIENCE_S,
    READY_TIMEOUT_S,
    Context,
    Outcome,
    Skipped,
    is_well,
    until_status,
)
from loadtests.service_process import ENGINE_MODULE, Service
from loadtests.wire import Client

SHARE_OF_CAPACITY = 0.5
# Who waited is told that the engine failed; who comes while there is none, that it is not ready.
ALLOWED = (
    "500 engine_failed", "500 engine_hung", "503 engine_failed", "503 engine_restarting", "503 not_ready", *OVERLOADED,
)  # fmt: skip


async def killed(context: Context) -> Outcome:
    """SIGKILL to the engine under load."""
    return await without_engine(context, lambda engine: engine.kill())


async def stopped(context: Context) -> Outcome:
    """SIGSTOP to the engine under load: it neither answers nor ends."""
    return await without_engine(context, lambda engine: engine.suspend())


async def without_engine(context: Context, strike: Callable[[psutil.Process], None]) -> Outcome:
    """/readyz says so soon, all who wait get an answer, and the service is ready again by itself."""
    outcome, extent = Outcome(), context.extent
    async with context.service() as service:
        engine = engine_of(service)
        client = Client(service.port, timeout_s=PATIENCE_S)
        outcome.rss_before_bytes = service.rss_bytes()
        rate = SHARE_OF_CAPACITY * context.capacity_per_s
        async with background(client, context.payloads.singles(), rate) as outcome.tally:
            await asyncio.sleep(extent.load_s / 3)
            strike(engine)
            unready_s = await until_status(service.port, 503, 3 * extent.unready_within_s)
            outcome.expect_within("/readyz 503", unready_s, extent.unready_within_s)
            outcome.expect_within(
                "ready again", await until_status(service.port, 200, READY_TIMEOUT_S), READY_TIMEOUT_S
            )
            await asyncio.sleep(extent.load_s / 3)
        outcome.expect("the old engine process is gone", not lives(engine))
        outcome.rss_after_bytes = service.rss_bytes()
        await is_well(service, context.payloads, outcome)
    outcome.notes["slowest error"] = f"{outcome.tally.slowest_error_s:.2f} s"
    outcome.expect_kinds(ALLOWED)
    return outcome


def engine_of(service: Service) -> psutil.Process:
    engine = service.engine()
    if engine is None:
        raise Skipped(f"this service runs its engine in its own process: no child runs {ENGINE_MODULE}")
    return engine


def lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
