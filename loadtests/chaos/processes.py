"""Processes that are killed, stopped or asked to exit under load: the engine's, or the whole service."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from loadtests.chaos.case import (
    CLIENT_TIMEOUT_S,
    OVERLOADED,
    READY_TIMEOUT_S,
    Context,
    Outcome,
    expect_well,
    until_status,
)
from loadtests.service_process import ENGINE_MODULE, free_port, launch
from loadtests.traffic import background
from loadtests.wire import Client

SHARE_WITHOUT_ENGINE, SHARE = 0.5, 0.8
DRAIN_TIMEOUT_S = 20
GRACE_S = 5
# Waiting requests learn that the engine failed; requests that arrive meanwhile, that there is none.
ENGINE_ERRORS = (
    "500 engine_failed",
    "500 engine_hung",
    "503 engine_failed",
    "503 engine_restarting",
    "503 not_ready",
    *OVERLOADED,
)


async def engine_killed(context: Context) -> Outcome:
    """SIGKILL to the engine under load."""
    return await without_engine(context, lambda engine: engine.kill())


async def engine_stopped(context: Context) -> Outcome:
    """SIGSTOP to the engine under load: it neither responds nor exits."""
    return await without_engine(context, lambda engine: engine.suspend())


async def without_engine(context: Context, strike: Callable[[psutil.Process], None]) -> Outcome:
    """/readyz returns 503 soon, every waiting request gets a reply, and the service becomes ready again by itself."""
    outcome, extent = Outcome(), context.extent
    async with context.service() as service:
        engine = service.engine()
        if engine is None:
            outcome.expect(f"a child process that runs {ENGINE_MODULE}", kept=False)
            return outcome
        client = Client(service.port, timeout_s=CLIENT_TIMEOUT_S)
        outcome.rss_before_bytes = service.rss_bytes()
        rate = SHARE_WITHOUT_ENGINE * context.capacity_per_s
        async with background(client, context.payloads.singles(), rate) as outcome.tally:
            await asyncio.sleep(extent.load_s / 3)
            strike(engine)
            unready_s = await until_status(service.port, 503, 3 * extent.unready_within_s)
            outcome.expect_within("/readyz 503", unready_s, extent.unready_within_s)
            ready_s = await until_status(service.port, 200, READY_TIMEOUT_S)
            outcome.expect_within("ready again", ready_s, READY_TIMEOUT_S)
            await asyncio.sleep(extent.load_s / 3)
        outcome.expect("the old engine process is gone", not lives(engine))
        outcome.rss_after_bytes = service.rss_bytes()
        await expect_well(service, context.payloads, outcome)
    outcome.notes["slowest error"] = f"{outcome.tally.slowest_error_s:.2f} s"
    outcome.expect_kinds(ENGINE_ERRORS)
    return outcome


async def terminated(context: Context) -> Outcome:
    """SIGTERM under load: every accepted request gets a reply, and the exit code is 0."""
    outcome, extent = Outcome(), context.extent
    async with context.service(drain_timeout_s=DRAIN_TIMEOUT_S) as service:
        outcome.rss_before_bytes = service.rss_bytes()
        # A connection each: on an idle one that the service is closing, a request would be lost without a fault.
        client = Client(service.port, keep_alive=False, timeout_s=CLIENT_TIMEOUT_S + DRAIN_TIMEOUT_S)
        async with background(client, context.payloads.singles(), SHARE * context.capacity_per_s) as outcome.tally:
            await asyncio.sleep(extent.load_s / 2)
            started_at = time.perf_counter()
            code = await service.stop(DRAIN_TIMEOUT_S + 2 * GRACE_S)
            outcome.expect_within("exited", time.perf_counter() - started_at, DRAIN_TIMEOUT_S + GRACE_S)
    outcome.expect(f"exit code 0, was {code}", code == 0)
    outcome.expect_kinds(["503 shutting_down"])
    outcome.notes["came too late to connect"] = str(outcome.tally.unconnected)
    return outcome


async def killed_and_restarted(context: Context) -> Outcome:
    """SIGKILL under load, then a new service on the same port: ready soon, and no process of the old one is left."""
    outcome, extent, port = Outcome(), context.extent, free_port()
    requests = context.payloads.singles()
    with tempfile.TemporaryDirectory() as folder:
        first = launch(context.settings, Path(folder) / "first.log", port)
        try:
            await first.wait_ready()
            client = Client(port, timeout_s=CLIENT_TIMEOUT_S)
            async with background(client, requests, SHARE * context.capacity_per_s) as cut_off:
                await asyncio.sleep(extent.load_s / 3)
                children = first.kill()
            # Noted, and not counted as lost: no service can answer after SIGKILL.
            outcome.notes["cut off by the kill"] = f"{cut_off.lost} of {cut_off.sent} requests"
        finally:
            first.clear_away()
        started_at = time.perf_counter()
        second = launch(context.settings, Path(folder) / "second.log", port)
        try:
            await second.wait_ready(READY_TIMEOUT_S)
            outcome.expect_within("ready again", time.perf_counter() - started_at, extent.restart_within_s)
            client = Client(port, timeout_s=CLIENT_TIMEOUT_S)
            outcome.rss_before_bytes = second.rss_bytes()
            async with background(client, requests, SHARE / 2 * context.capacity_per_s) as outcome.tally:
                await asyncio.sleep(extent.load_s / 3)
            outcome.rss_after_bytes = second.rss_bytes()
            await expect_well(second, context.payloads, outcome)
            outcome.expect("no process of the killed service is left", not any(map(lives, children)))
        finally:
            second.clear_away()
            for child in filter(lives, children):
                child.kill()
    outcome.expect_kinds(OVERLOADED)
    return outcome


def lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
