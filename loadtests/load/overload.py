"""Several times the capacity, from clients that do not wait for answers: what is still done, and for whom."""

import time
from dataclasses import dataclass, field
from typing import Any

from loadtests.arrivals import open_loop, peak_rate
from loadtests.payloads import Payloads
from loadtests.service_process import Service, known_settings, started
from loadtests.tally import Tally
from loadtests.targets import Target
from loadtests.wire import Client

# Without a bound on the wait, answers come until the queue is empty; who gives up earlier cannot tell late from lost.
PATIENCE_S = 180
LEAST_GOODPUT = 0.8
MOST_WAIT_BOUNDS = 3


@dataclass(frozen=True, slots=True)
class Overload:
    """times: the capacity that is offered."""

    seconds: float = 60
    peak_seconds: float = 10
    times: float = 5
    settings: dict[str, object] = field(default_factory=dict)


async def measure(payloads: Payloads, plan: Overload) -> dict[str, Any]:
    """Capacity, then `times` as much, then what became of it."""
    stated = plan.settings.get("max_wait_s", known_settings().get("max_wait_s"))
    wait_bound_s = float(str(stated)) if stated else None
    async with started(**plan.settings) as service:
        client = Client(service.port, timeout_s=PATIENCE_S)
        peak = await peak_rate(client, payloads.singles(), plan.peak_seconds)
        before = service.rss_bytes()
        tally, took_s = await offered(service, payloads, plan.times * peak, plan.seconds)
        after = service.rss_bytes()
    goodput = tally.answered / took_s
    measured = {
        "payloads": payloads.origin,
        "peak_per_s": peak,
        "offered_per_s": plan.times * peak,
        "seconds": plan.seconds,
        "goodput_per_s": goodput,
        "wait_bound_s": wait_bound_s,
        "rss_before_bytes": before,
        "rss_after_bytes": after,
    }
    targets = [target.record() for target in targets_of(tally, goodput / peak, wait_bound_s)]
    return measured | tally.figures() | {"broken": tally.broken(), "targets": targets}


async def offered(service: Service, payloads: Payloads, rate: float, seconds: float) -> tuple[Tally, float]:
    """What became of the requests, and the seconds until the last of them had its answer."""
    tally = Tally()
    client = Client(service.port, timeout_s=PATIENCE_S)
    begun = time.perf_counter()
    await open_loop(client, payloads.singles(), rate, tally, seconds=seconds)
    client.close()
    return tally, time.perf_counter() - begun


def targets_of(tally: Tally, goodput_share: float, wait_bound_s: float | None) -> list[Target]:
    targets = [
        Target("lost", tally.lost, 0, "at most"),
        Target("goodput as a share of the peak", goodput_share, LEAST_GOODPUT, "at least"),
    ]
    if wait_bound_s:
        limit = MOST_WAIT_BOUNDS * wait_bound_s
        targets.append(Target("p99 of the answered", tally.percentile_s(0.99), limit, "at most", " s"))
    return targets
