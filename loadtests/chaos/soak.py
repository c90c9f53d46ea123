"""Hours compressed into minutes: most of the capacity, and memory that stays as it was once everything is warm."""

import asyncio
import statistics

from loadtests.arrivals import background
from loadtests.chaos.case import OVERLOADED, PATIENCE_S, Context, Outcome, is_well
from loadtests.wire import Client

SHARE_OF_CAPACITY = 0.8
MOST_WARM_UP_S = 120
SAMPLES = 60


async def soak(context: Context) -> Outcome:
    """Memory is the median of the samples in the first and in the last sixth after the warm-up."""
    outcome, extent = Outcome(), context.extent
    warm_up_s = min(MOST_WARM_UP_S, extent.soak_s / 5)
    rest_s = extent.soak_s - warm_up_s
    async with context.service() as service:
        client = Client(service.port, timeout_s=PATIENCE_S)
        rate = SHARE_OF_CAPACITY * context.capacity_per_s
        sizes: list[int] = []
        async with background(client, context.payloads.singles(), rate) as outcome.tally:
            await asyncio.sleep(warm_up_s)
            for _ in range(SAMPLES):
                await asyncio.sleep(rest_s / SAMPLES)
                sizes.append(service.rss_bytes())
        await is_well(service, context.payloads, outcome)
    outcome.rss_before_bytes = int(statistics.median(sizes[: SAMPLES // 6]))
    outcome.rss_after_bytes = int(statistics.median(sizes[-SAMPLES // 6 :]))
    growth = outcome.rss_after_bytes / outcome.rss_before_bytes - 1
    outcome.notes["growth after warm-up"] = f"{growth:.1%} in {rest_s / 60:.1f} min at {rate:.1f} /s"
    outcome.expect(f"memory grows less than {extent.most_growth:.0%}, was {growth:.1%}", growth < extent.most_growth)
    outcome.expect_kinds(OVERLOADED)
    return outcome
