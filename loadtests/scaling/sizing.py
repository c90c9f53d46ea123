"""How many replicas a rate needs, and what rate a number of replicas takes: searched in the simulation."""

import math
from dataclasses import replace

import numpy as np

from loadtests.scaling.queueing import Engine, Fleet, Floats, poisson, simulate

# The first fifth of a run starts from empty queues, which flatters.
WARM_UP = 0.2
LEAST_ARRIVALS, ARRIVALS_A_REPLICA = 10_000, 200
# Whatever the percentile allows: the rest is for a replica that is lost, for peaks, and for what the model leaves out.
MOST_UTILISATION = 0.8
# A rate is searched for this closely, as a share of the capacity.
RATE_STEP = 0.01


def p99(rate: float, engine: Engine, tokens: Floats, fleet: Fleet) -> float:
    """Seconds, in a run long enough that every replica has a few hundred requests."""
    count = max(LEAST_ARRIVALS, ARRIVALS_A_REPLICA * fleet.replicas)
    requests = poisson(rate, count, tokens, engine)
    outcome = simulate(requests, engine, fleet)
    return outcome.percentile_s(0.99, after_s=WARM_UP * requests.arrived[-1])


def alone_p99(engine: Engine, tokens: Floats, front_s: float = 0.0) -> float:
    """What no number of replicas can go below: nobody waits, and every batch is one item."""
    return front_s + engine.fixed_s + float(np.percentile(engine.work_s(tokens), 99))


def replicas_for(
    rate: float, p99_s: float, engine: Engine, tokens: Floats, *, fleet: Fleet | None = None, most: int = 1024
) -> int | None:
    """The fewest replicas that keep the 99th percentile at `rate` a second. None if `most` do not.

    fleet: how they are routed to; its own number of replicas does not matter.
    """
    routed = fleet or Fleet(1)
    if alone_p99(engine, tokens, routed.front_s) > p99_s:
        return None

    def suffices(replicas: int) -> bool:
        return p99(rate, engine, tokens, replace(routed, replicas=replicas)) <= p99_s

    too_few = math.ceil(rate / (MOST_UTILISATION * engine.capacity(tokens))) - 1
    enough = too_few + 1
    while not suffices(enough):
        too_few, enough = enough, enough + max(1, enough // 4)
        if too_few >= most:
            return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return enough


def rate_for(replicas: int, p99_s: float, engine: Engine, tokens: Floats, *, fleet: Fleet | None = None) -> float:
    """The highest rate, to a hundredth of the capacity, at which so many replicas keep the percentile; 0 if none."""
    routed = replace(fleet or Fleet(1), replicas=replicas)
    step = RATE_STEP * replicas * engine.capacity(tokens)
    kept, missed = 0, round(MOST_UTILISATION / RATE_STEP) + 1
    if alone_p99(engine, tokens, routed.front_s) > p99_s:
        return 0.0
    while missed - kept > 1:
        middle = (kept + missed) // 2
        kept, missed = (middle, missed) if p99(middle * step, engine, tokens, routed) <= p99_s else (kept, middle)
    return kept * step
