"""Offer several times the capacity, from clients that do not wait for replies."""

import time
from collections.abc import Mapping
from typing import Any

from loadtests.payloads import Payloads
from loadtests.report import Target
from loadtests.service_process import started
from loadtests.traffic import Tally, open_loop, peak_rate
from loadtests.wire import Client

TIMES_CAPACITY = 5
# The service's own default, stated so that the bound is known here.
MAX_WAIT_S = 10
# Longer than any reply may take; a client that gives up earlier would count late replies as lost.
CLIENT_TIMEOUT_S = 180
MIN_GOODPUT = 0.8
MAX_WAIT_BOUNDS = 3


async def measure(
    payloads: Payloads, settings: Mapping[str, object], *, seconds: float = 60, peak_seconds: float = 10
) -> dict[str, Any]:
    """Measure the capacity, offer TIMES_CAPACITY as much, and count the outcomes."""
    tally = Tally()
    async with started(**{"max_wait_s": MAX_WAIT_S} | dict(settings)) as service:
        client = Client(service.port, timeout_s=CLIENT_TIMEOUT_S)
        peak = await peak_rate(client, payloads.singles(), peak_seconds)
        before = service.rss_bytes()
        started_at = time.perf_counter()
        await open_loop(client, payloads.singles(), TIMES_CAPACITY * peak, tally, seconds=seconds)
        goodput = tally.answered / (time.perf_counter() - started_at)
        client.close()
        after = service.rss_bytes()
    return tally.record() | {
        "payloads": payloads.origin,
        "peak_per_s": peak,
        "offered_per_s": TIMES_CAPACITY * peak,
        "seconds": seconds,
        "goodput_per_s": goodput,
        "wait_bound_s": MAX_WAIT_S,
        "rss_before_bytes": before,
        "rss_after_bytes": after,
        "broken": tally.broken(),
        "targets": [target.record() for target in targets(tally, goodput / peak)],
    }


def targets(tally: Tally, goodput_share: float) -> list[Target]:
    return [
        Target("lost", tally.lost, 0, "at most"),
        Target("goodput as a share of the peak", goodput_share, MIN_GOODPUT, "at least"),
        Target("p99 of the answered", tally.percentile_s(99), MAX_WAIT_BOUNDS * MAX_WAIT_S, "at most", " s"),
    ]
