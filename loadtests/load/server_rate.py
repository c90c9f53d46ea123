"""The highest rate of the Server scenario that is valid under the bound, as a share of the Offline rate."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtests.arrivals import closed_loop
from loadtests.load.mlperf import BATCH_ITEMS, PATIENCE_S, Outcome, Trial, run
from loadtests.payloads import Payloads
from loadtests.service_process import started
from loadtests.targets import Target
from loadtests.wire import Client

LEAST_SHARE = 0.8
# Fewer answers than this cannot show a 99th percentile with LoadGen's confidence, however fast they are.
LEAST_QUERIES = 459
# A short trial flatters: the bound that it kept may not hold for longer.
STEP_DOWN = 0.8


@dataclass(frozen=True, slots=True)
class Search:
    """Short trials that halve the interval, then one long run that has to be valid, a little lower if it is not."""

    trial_seconds: float = 12
    final_seconds: float = 60
    offline_seconds: float = 30
    steps: int = 5
    final_attempts: int = 3
    p99_bound_s: float = 0.13
    least_queries: int = LEAST_QUERIES
    settings: dict[str, object] = field(default_factory=dict)


async def measure(payloads: Payloads, search: Search) -> dict[str, Any]:
    async with started(**search.settings) as service:
        expected = await batch_rate(service.port, payloads, search.trial_seconds / 2)
        wanted = Trial("Offline", expected, search.offline_seconds, search.p99_bound_s)
        offline = await run(service.port, payloads, wanted)
        server, trials = await find_rate(service.port, payloads, offline.rate, search)
    share = server.rate / offline.rate if server and offline.rate else None
    return {
        "payloads": payloads.origin,
        "p99_bound_s": search.p99_bound_s,
        "offline": asdict(offline),
        "offline_min_duration_s": search.offline_seconds,
        "server": asdict(server) if server else None,
        "server_min_duration_s": search.final_seconds,
        "server_min_query_count": search.least_queries,
        "trials": trials,
        "targets": [Target("Server rate as a share of the Offline rate", share, LEAST_SHARE, "at least").record()],
    }


async def batch_rate(port: int, payloads: Payloads, seconds: float) -> float:
    """Comparisons a second in batches: Offline has to know in advance how many samples make its duration."""
    client = Client(port, timeout_s=PATIENCE_S)
    begun = time.perf_counter()
    tally = await closed_loop(client, payloads.batches(BATCH_ITEMS), 2, seconds)
    client.close()
    return max(tally.answered * BATCH_ITEMS / (time.perf_counter() - begun), 1)


async def find_rate(
    port: int, payloads: Payloads, offline_rate: float, search: Search
) -> tuple[Outcome | None, list[dict[str, Any]]]:
    """The outcome of the long run, None if no rate was valid; and every trial before it."""
    trials = []
    low, high = 0.0, offline_rate

    async def attempt(rate: float, seconds: float, least_queries: int = 1) -> Outcome:
        outcome = await run(port, payloads, Trial("Server", rate, seconds, search.p99_bound_s, least_queries))
        trials.append({"target_rate": rate, "seconds": seconds} | asdict(outcome))
        return outcome

    for _ in range(search.steps):
        rate = (low + high) / 2
        if (await attempt(rate, search.trial_seconds)).within_bound:
            low = rate
        else:
            high = rate
    for _ in range(search.final_attempts if low else 0):
        outcome = await attempt(low, search.final_seconds, search.least_queries)
        if outcome.valid:
            return outcome, trials
        low *= STEP_DOWN
    return None, trials
