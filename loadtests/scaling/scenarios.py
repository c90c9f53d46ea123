"""What no machine at hand can be made to do, simulated: a full front, many routers, bounded replicas, late replicas."""

from dataclasses import replace
from typing import Any

import numpy as np

from loadtests.scaling.queueing import Engine, Fleet, Floats, Outcome, Requests, poisson, simulate, through_front
from loadtests.scaling.sizing import WARM_UP

SHARES = (0.5, 0.8, 0.9, 0.95, 1.05)
ROUTERS = (1, 4, 16, 64)
ROUTINGS = ("two choices", "round robin", "random")
# The first is Ray Serve's default.
BOUNDS = (5, 16, 64, 128, 256)
# Bounds are hit when more is offered than the replicas take.
OFFERED = 1.5
ROUTED_UTILISATION = 0.8
CALM_UTILISATION, CALM_S, MAX_WAIT_S, WINDOW_S = 0.6, 30.0, 10.0, 5.0


def front_waits(pairs_per_front: float, seconds: float) -> list[dict[str, float]]:
    """One front process alone, asked for a share of its ceiling for so long."""
    rows = []
    for share in SHARES:
        rate = share * pairs_per_front
        arrived = np.cumsum(np.random.default_rng(17).exponential(1 / rate, int(rate * seconds)))
        took_s = through_front(arrived, np.zeros(len(arrived), dtype=np.int64), 1 / pairs_per_front) - arrived
        p50_s, p99_s = np.percentile(took_s, [50, 99])
        rows.append({"share": share, "p50_s": float(p50_s), "p99_s": float(p99_s)})
    return rows


def routing(engine: Engine, tokens: Floats, arrivals: int, replicas: int = 100) -> list[dict[str, Any]]:
    """p99 by number of routers and way of routing: the more routers, the less each knows."""
    requests = poisson(ROUTED_UTILISATION * replicas * engine.capacity(tokens), arrivals, tokens, engine)
    after_s, rows = WARM_UP * float(requests.arrived[-1]), []
    for routers in ROUTERS:
        fleets = {way: Fleet(replicas, routing=way, routers=routers) for way in ROUTINGS}
        found = {way: simulate(requests, engine, fleet).percentile_s(0.99, after_s) for way, fleet in fleets.items()}
        rows.append({"routers": routers, "replicas": replicas, "p99_s": found})
    return rows


def ongoing_bounds(engine: Engine, tokens: Floats, arrivals: int, replicas: int = 4) -> list[dict[str, float]]:
    """What a bound on a replica's ongoing requests leaves of the capacity, when more than that is offered."""
    capacity = replicas * engine.capacity(tokens)
    requests = poisson(OFFERED * capacity, arrivals, tokens, engine)
    found = {bound: simulate(requests, engine, Fleet(replicas, max_ongoing=bound)) for bound in BOUNDS}
    return [{"bound": bound, "share": outcome.goodput() / capacity} for bound, outcome in found.items()]


def late_replicas(
    engine: Engine, tokens: Floats, delays_s: tuple[float, ...], replicas: int = 4
) -> list[dict[str, Any]]:
    """The load doubles, and so do the replicas, but later. Who would wait longer than the service allows is refused."""
    strict = replace(engine, max_wait_s=MAX_WAIT_S)
    rate, rows = CALM_UTILISATION * replicas * engine.capacity(tokens), []
    for delay_s in delays_s:
        end_s = CALM_S + 2 * delay_s + 3 * MAX_WAIT_S
        requests = doubled(poisson(rate, int(rate * (2 * end_s - CALM_S)), tokens, engine))
        outcome = simulate(requests, strict, Fleet(replicas, joins_s=(CALM_S + delay_s,) * replicas))
        rows.append({"delay_s": delay_s, "refused": outcome.refused} | course(outcome, end_s))
    return rows


def doubled(requests: Requests) -> Requests:
    """The same requests, coming twice as fast after the calm."""
    arrived = requests.arrived
    return replace(requests, arrived=np.where(arrived < CALM_S, arrived, CALM_S + (arrived - CALM_S) / 2))


def course(outcome: Outcome, end_s: float) -> dict[str, float]:
    """p99 before, p99 of the worst stretch, and how long after the doubling it stays above twice what it was."""
    before_s = outcome.percentile_s(0.99, WARM_UP * CALM_S, CALM_S)
    begins = np.arange(CALM_S, end_s, WINDOW_S)
    worst = [outcome.percentile_s(0.99, begin, begin + WINDOW_S) for begin in begins]
    above = [begin for begin, p99_s in zip(begins, worst, strict=True) if p99_s > 2 * before_s]
    lasted_s = float(above[-1]) + WINDOW_S - CALM_S if above else 0.0
    return {"before_p99_s": before_s, "worst_p99_s": float(np.nanmax(worst)), "lasted_s": lasted_s}
