"""More than the queue may hold, deadlines that pass in it, and a long run below the capacity."""

import asyncio
import statistics

from loadtests.chaos.case import CLIENT_TIMEOUT_S, OVERLOADED, Context, Outcome, expect_well
from loadtests.traffic import background, open_loop
from loadtests.wire import Client

TIMES_CAPACITY = 5
DEADLINE_MS = 250
# Two comparisons of full length, or a dozen usual ones.
FEW_TOKENS = 4096
SOAK_SHARE = 0.8
MAX_WARM_UP_S = 120
SAMPLES = 60


async def full_429(context: Context) -> Outcome:
    """A small queue that refuses with 429."""
    return await full(context, 429)


async def full_503(context: Context) -> Outcome:
    """The same with 503, for clients to which every 4xx is fatal."""
    return await full(context, 503)


async def full(context: Context, status: int) -> Outcome:
    """Several times the capacity: the surplus is refused at once, with the time to come back."""
    tokens = context.settings.get("max_batch_tokens", FEW_TOKENS)
    outcome = await flood(context, {"max_queue_tokens": tokens, "overload_status": status})
    outcome.expect("something was refused", outcome.tally.refused > 0)
    outcome.expect_kinds([f"{status} overloaded"])
    outcome.notes["slowest refusal"] = f"{outcome.tally.slowest_error_s:.2f} s"
    return outcome


async def deadlines(context: Context) -> Outcome:
    """Several times the capacity, from clients that state how long they wait."""
    outcome = await flood(context, {}, {"X-Request-Timeout-Ms": str(DEADLINE_MS)})
    outcome.expect("not everything was answered in time", outcome.tally.refused > 0)
    outcome.expect_kinds(["504 deadline_exceeded", *OVERLOADED])
    outcome.notes["deadline"] = f"{DEADLINE_MS} ms; slowest refusal {outcome.tally.slowest_error_s:.2f} s"
    return outcome


async def flood(context: Context, settings: dict[str, object], headers: dict[str, str] | None = None) -> Outcome:
    outcome = Outcome()
    async with context.service(**settings) as service:
        client, rate = Client(service.port, timeout_s=CLIENT_TIMEOUT_S), TIMES_CAPACITY * context.capacity_per_s
        outcome.rss_before_bytes = service.rss_bytes()
        requests = context.payloads.singles(headers)
        await open_loop(client, requests, rate, outcome.tally, seconds=context.extent.load_s)
        client.close()
        outcome.rss_after_bytes = service.rss_bytes()
        outcome.expect("something was answered", outcome.tally.answered > 0)
        await expect_well(service, context.payloads, outcome)
    return outcome


async def soak(context: Context) -> Outcome:
    """Most of the capacity for long: memory must not grow once everything is warm.

    Memory is the median of the samples in the first and in the last sixth after the warm-up.
    """
    outcome, extent = Outcome(), context.extent
    warm_up_s = min(MAX_WARM_UP_S, extent.soak_s / 5)
    rest_s = extent.soak_s - warm_up_s
    rate = SOAK_SHARE * context.capacity_per_s
    async with context.service() as service:
        client = Client(service.port, timeout_s=CLIENT_TIMEOUT_S)
        sizes: list[int] = []
        async with background(client, context.payloads.singles(), rate) as outcome.tally:
            await asyncio.sleep(warm_up_s)
            for _ in range(SAMPLES):
                await asyncio.sleep(rest_s / SAMPLES)
                sizes.append(service.rss_bytes())
        await expect_well(service, context.payloads, outcome)
    before = outcome.rss_before_bytes = int(statistics.median(sizes[: SAMPLES // 6]))
    after = outcome.rss_after_bytes = int(statistics.median(sizes[-SAMPLES // 6 :]))
    growth = after / before - 1
    outcome.notes["growth after warm-up"] = f"{growth:.1%} in {rest_s / 60:.1f} min at {rate:.1f} /s"
    outcome.expect(f"memory grows less than {extent.max_growth:.0%}, was {growth:.1%}", growth < extent.max_growth)
    outcome.expect_kinds(OVERLOADED)
    return outcome
