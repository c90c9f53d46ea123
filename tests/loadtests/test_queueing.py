"""The simulation against what queueing theory knows exactly, and against what has to hold whatever the numbers."""

import math
from itertools import pairwise

import numpy as np
import pytest

from loadtests.scaling.queueing import Engine, Fleet, Floats, Outcome, Requests, poisson, simulate, through_front
from loadtests.scaling.sizing import MOST_UTILISATION, alone_p99, p99, rate_for, replicas_for

# One item a batch, no cost of its own: the engine of the textbooks. Times are in mean services.
SINGLE = Engine(fixed_s=0.0, s_per_token=1.0, max_batch_tokens=0)
CPU = Engine(fixed_s=0.004, s_per_token=35e-6, s_per_token2=4e-9)
LENGTHS = np.array([120.0, 300, 450, 450, 600, 700, 900, 2048])


def served(rho: float, count: int, *, memoryless: bool, fleet: Fleet, seed: int = 17) -> Outcome:
    """Poisson arrivals at `rho` a replica; service 1 on average, exponential or constant."""
    dice = np.random.default_rng(seed)
    arrived = np.cumsum(dice.exponential(1 / (rho * fleet.replicas), count))
    work = dice.exponential(1, count) if memoryless else np.ones(count)
    return simulate(Requests(arrived, np.ones(count), work), SINGLE, fleet)


def mean_s(outcome: Outcome, after: float = 0.1) -> float:
    """Of those after the first tenth: the queues start empty."""
    return float(np.mean(outcome.latency_s[int(after * len(outcome.latency_s)) :]))


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_one_replica_with_exponential_service_is_mm1(rho: float) -> None:
    """Mean time in the system 1 / (1 - rho). Its 99th percentile is ln(100) times the mean."""
    outcome = served(rho, 200_000, memoryless=True, fleet=Fleet(1))
    assert mean_s(outcome) == pytest.approx(1 / (1 - rho), rel=0.05)
    assert outcome.percentile_s(0.99) == pytest.approx(math.log(100) / (1 - rho), rel=0.1)
    assert outcome.utilisation == pytest.approx(rho, rel=0.02)


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_one_replica_with_constant_service_is_md1(rho: float) -> None:
    """Pollaczek and Khinchine: mean wait rho / (2 (1 - rho))."""
    outcome = served(rho, 200_000, memoryless=False, fleet=Fleet(1))
    assert mean_s(outcome) - 1 == pytest.approx(rho / (2 * (1 - rho)), rel=0.05)


@pytest.mark.parametrize("rho", [0.7, 0.9])
def test_two_choices_among_many_take_as_long_as_mitzenmacher_says(rho: float) -> None:
    """Mean time sum over i >= 1 of rho**((d**i - d) / (d - 1)) with d = 2, as the number of queues grows."""
    outcome = served(rho, 200_000, memoryless=True, fleet=Fleet(500))
    expected = sum(rho ** (2**i - 2) for i in range(1, 12))
    assert mean_s(outcome, after=0.3) == pytest.approx(expected, rel=0.05)


def test_random_routing_is_as_many_single_queues() -> None:
    outcome = served(0.7, 200_000, memoryless=True, fleet=Fleet(50, routing="random"))
    assert mean_s(outcome, after=0.2) == pytest.approx(1 / 0.3, rel=0.05)


def test_better_routing_waits_less() -> None:
    """With lengths that differ: the shorter of two beats taking turns, which beats chance."""
    requests = poisson(0.8 * 20 * CPU.capacity(LENGTHS), 40_000, LENGTHS, CPU)
    found = [
        simulate(requests, CPU, Fleet(20, routing=routing)).percentile_s(0.99)
        for routing in ("two choices", "round robin", "random")
    ]
    assert found == sorted(found)
    assert found[2] > 1.3 * found[0]


def test_routers_that_know_less_wait_longer() -> None:
    requests = poisson(0.9 * 40 * CPU.capacity(LENGTHS), 40_000, LENGTHS, CPU)
    one, many = (simulate(requests, CPU, Fleet(40, routers=n)).percentile_s(0.99) for n in (1, 40))
    assert one < many
    assert many < simulate(requests, CPU, Fleet(40, routing="random")).percentile_s(0.99)


def test_two_routers_on_few_replicas_know_nearly_all() -> None:
    """One that forgot the answers would take busy for what is idle, and wait three times as long."""
    requests = poisson(0.9 * 4 * CPU.capacity(LENGTHS), 40_000, LENGTHS, CPU)
    one, two = (simulate(requests, CPU, Fleet(4, routers=n)).percentile_s(0.99) for n in (1, 2))
    assert two < 1.5 * one


def test_batch_is_who_comes_next_while_the_tokens_last() -> None:
    """One runs alone; then 3 of the 4 that came meanwhile fit into 1,000 tokens; the last one goes after them."""
    engine = Engine(fixed_s=1.0, s_per_token=0.01, max_batch_tokens=1000)
    tokens = np.array([100.0, 400, 400, 200, 300])
    requests = Requests(np.array([0.0, 0.1, 0.2, 0.3, 0.4]), tokens, engine.work_s(tokens))
    outcome = simulate(requests, engine, Fleet(1))
    assert outcome.latency_s + requests.arrived == pytest.approx([2, 13, 13, 13, 17])
    assert outcome.last_s == pytest.approx(17)
    assert outcome.utilisation == pytest.approx(1)
    assert outcome.goodput(within_s=12.85) == pytest.approx(3 / 17)
    assert engine.capacity(tokens) == pytest.approx(5 / (2 + 14))


def test_more_replicas_are_never_worse() -> None:
    rate = 3 * CPU.capacity(LENGTHS)
    found = [p99(rate, CPU, LENGTHS, Fleet(n)) for n in (4, 5, 6, 8, 12)]
    assert all(later <= earlier * 1.02 for earlier, later in pairwise(found))
    assert found[-1] >= alone_p99(CPU, LENGTHS) * 0.99


def test_everybody_is_answered_or_refused_with_full_queues() -> None:
    """Twice the capacity: who would wait for more than a second of work is refused, and nobody waits much longer."""
    engine = Engine(CPU.fixed_s, CPU.s_per_token, max_wait_s=1.0)
    outcome = simulate(poisson(2 * engine.capacity(LENGTHS), 5_000, LENGTHS, engine), engine, Fleet(1))
    answered = int(np.sum(~np.isnan(outcome.latency_s)))
    assert answered + outcome.refused == 5_000
    assert 0.4 < outcome.refused / 5_000 < 0.6
    assert outcome.percentile_s(1.0) < 1.5
    assert outcome.goodput() == pytest.approx(engine.capacity(LENGTHS), rel=0.05)


def test_bound_on_ongoing_requests_loses_nobody_and_costs_waiting() -> None:
    """The routers keep what no replica takes, look again later, and send the oldest first."""
    requests = poisson(0.9 * 4 * CPU.capacity(LENGTHS), 5_000, LENGTHS, CPU)
    free, bound = (simulate(requests, CPU, Fleet(4, routers=2, max_ongoing=n)) for n in (math.inf, 2))
    assert (bound.refused, free.refused) == (0, 0)
    assert bound.percentile_s(0.5) > free.percentile_s(0.5)


def test_front_is_md1_and_saturates() -> None:
    dice = np.random.default_rng(3)
    arrived = np.cumsum(dice.exponential(1 / 0.8, 100_000))
    left = through_front(arrived, np.zeros(len(arrived), dtype=np.int64), 1.0)
    assert float(np.mean((left - arrived)[10_000:])) == pytest.approx(1 + 0.8 / (2 * 0.2), rel=0.05)
    by_hand = through_front(np.array([0.0, 0.5, 3.0]), np.zeros(3, dtype=np.int64), 1.0)
    assert by_hand.tolist() == [1, 2, 4]
    two = through_front(np.array([0.0, 0.5, 3.0]), np.array([0, 1, 0]), 1.0)
    assert two.tolist() == [1, 1.5, 4]


def test_replicas_that_join_relieve_those_that_wait() -> None:
    requests = poisson(2 * CPU.capacity(LENGTHS), 4_000, LENGTHS, CPU)
    end = float(requests.arrived[-1])
    outcome = simulate(requests, CPU, Fleet(1, joins_s=(end / 3, end / 3)))
    before, after = outcome.percentile_s(0.5, end / 4, end / 3), outcome.percentile_s(0.5, 0.9 * end)
    assert after < before / 5


@pytest.mark.parametrize(("rate", "p99_s"), [(30.0, 0.5), (300.0, 0.15), (1500.0, 0.12)])
def test_found_replicas_suffice_and_one_fewer_does_not(rate: float, p99_s: float) -> None:
    replicas = replicas_for(rate, p99_s, CPU, LENGTHS)
    assert replicas is not None
    assert p99(rate, CPU, LENGTHS, Fleet(replicas)) <= p99_s
    fewer = replicas - 1
    assert MOST_UTILISATION * fewer * CPU.capacity(LENGTHS) < rate or p99(rate, CPU, LENGTHS, Fleet(fewer)) > p99_s


def test_what_the_longest_text_takes_alone_no_replicas_can_better() -> None:
    assert replicas_for(10, 0.05, CPU, LENGTHS) is None
    assert rate_for(10, 0.05, CPU, LENGTHS) == 0


def test_found_rate_needs_these_replicas() -> None:
    """The way back, and large fleets use theirs better than small ones (economy of scale)."""
    rate = rate_for(20, 0.13, CPU, LENGTHS)
    found = replicas_for(rate, 0.13, CPU, LENGTHS)
    assert found in (19, 20)
    assert rate_for(3, 0.13, CPU, LENGTHS) / 3 < rate / 20 < CPU.capacity(LENGTHS)


def test_same_seed_same_numbers() -> None:
    def once() -> Floats:
        return simulate(poisson(100, 2_000, LENGTHS, CPU), CPU, Fleet(5, routers=3)).latency_s

    assert np.array_equal(once(), once())
