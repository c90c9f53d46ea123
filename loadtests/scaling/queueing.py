"""Replicas of the service as queues: a discrete-event simulation, fast enough to search with.

A replica batches as the service does: no timer; when its engine is free it takes who comes next, in the order of
arrival, up to `max_batch_tokens`. A router sends each request to the shorter of two queues (Mitzenmacher 2001), as Ray
Serve does, or to the next replica in turn. In front of the routers may stand a stage that takes `front_s` a request.
"""

import math
import random
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# A task of Ray Serve's router that finds no room looks again at once, then after so long, twice as long each time up to
# the bound; a replica that becomes free wakes nobody. A router has so many tasks for each replica, and so many at most.
BACKOFF_S, MOST_BACKOFF_S, TASKS_A_REPLICA, MOST_TASKS = 0.025, 0.5, 2, 50
# What a router knows of a replica is asked for anew after this long.
VIEW_TTL_S = 10.0


@dataclass(frozen=True, slots=True)
class Engine:
    """A batch takes fixed_s + the sum over its items of s_per_token * t + s_per_token2 * t**2.

    t: tokens of an item's readings together, as computed, padding included. max_wait_s: who would wait longer, is
    refused.
    """

    fixed_s: float
    s_per_token: float
    s_per_token2: float = 0.0
    max_batch_tokens: int = 1024
    max_wait_s: float | None = None

    def work_s(self, tokens: Floats) -> Floats:
        """Seconds of each item, without what its batch takes anyway."""
        return self.s_per_token * tokens + self.s_per_token2 * tokens**2

    def capacity(self, tokens: Floats) -> float:
        """Items a second if somebody always waits: batches as full as the order of arrival lets them be."""
        batches, room = 0, 0.0
        for size in tokens.tolist():
            if size > room:
                batches, room = batches + 1, float(self.max_batch_tokens)
            room -= size
        return len(tokens) / (batches * self.fixed_s + float(self.work_s(tokens).sum()))


@dataclass(frozen=True, slots=True)
class Fleet:
    """routers: processes that each route their share of the requests, by what they themselves know of the queues.

    max_ongoing: waiting and running on one replica; above it a router keeps its requests. front_s: what a router takes
    for a request before it sends it on. joins_s: when further replicas come.
    """

    replicas: int
    routing: Literal["two choices", "round robin", "random"] = "two choices"
    routers: int = 1
    max_ongoing: float = math.inf
    front_s: float = 0.0
    joins_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Requests:
    """arrived: ascending seconds. tokens: of all readings. work_s: beside what their batch takes anyway."""

    arrived: Floats
    tokens: Floats
    work_s: Floats


@dataclass(frozen=True, slots=True)
class Outcome:
    """latency_s: of each request, from its arrival at the front to its answer; not a number for the refused."""

    arrived: Floats
    latency_s: Floats
    utilisation: float
    last_s: float

    def percentile_s(self, share: float, after_s: float = 0.0, before_s: float = math.inf) -> float:
        """Of the answered among those that arrived between the two times; not a number if there are none."""
        chosen = self.latency_s[(self.arrived >= after_s) & (self.arrived < before_s) & ~np.isnan(self.latency_s)]
        return float(np.percentile(chosen, 100 * share)) if len(chosen) else math.nan

    def goodput(self, within_s: float = math.inf) -> float:
        """Answers a second that took no longer, until the last answer."""
        return float(np.sum(self.latency_s <= within_s)) / self.last_s if self.last_s else 0.0

    @property
    def refused(self) -> int:
        return int(np.isnan(self.latency_s).sum())


def poisson(rate: float, count: int, tokens: Floats, engine: Engine, seed: int = 17) -> Requests:
    """Requests whose lengths are drawn from the empirical list `tokens`."""
    dice = np.random.default_rng(seed)
    sizes = dice.choice(tokens, count).astype(np.float64)
    return Requests(np.cumsum(dice.exponential(1 / rate, count)), sizes, engine.work_s(sizes))


def simulate(requests: Requests, engine: Engine, fleet: Fleet, seed: int = 17) -> Outcome:
    """What becomes of the requests."""
    return _Simulation(requests, engine, fleet, seed).run()


def through_front(arrived: Floats, router: NDArray[np.int64], front_s: float) -> Floats:
    """When each leaves its router's queue: first come, first served, front_s each (Lindley 1952)."""
    left = arrived.copy()
    for one in np.unique(router) if front_s else ():
        mine = np.flatnonzero(router == one)
        turns = np.arange(len(mine)) * front_s
        left[mine] = np.maximum.accumulate(arrived[mine] - turns) + turns + front_s
    return left


class _Simulation:
    """Plain lists inside: single numbers out of arrays would take most of the time."""

    def __init__(self, requests: Requests, engine: Engine, fleet: Fleet, seed: int) -> None:
        self.requests, self.engine, self.fleet = requests, engine, fleet
        self.dice = random.Random(seed)
        count, most = len(requests.arrived), fleet.replicas + len(fleet.joins_s)
        routers = np.random.default_rng(seed).integers(0, fleet.routers, count)
        ready = through_front(requests.arrived, routers, fleet.front_s)
        self.order = np.argsort(ready, kind="stable").tolist()
        self.ready, self.router = ready.tolist(), routers.tolist()
        self.tokens, self.work_s = requests.tokens.tolist(), requests.work_s.tolist()
        self.done = [math.nan] * count
        self.active, self.joins = fleet.replicas, sorted(fleet.joins_s, reverse=True)
        self.waiting: list[deque[int]] = [deque() for _ in range(most)]
        self.pending: list[deque[int]] = [deque() for _ in range(fleet.routers)]
        self.tasks = [0] * fleet.routers
        self.ongoing, self.backlog_s, self.is_busy = [0] * most, [0.0] * most, [False] * most
        # One router sends everything and sees every answer: what it knows is what there is.
        self.knows_all = fleet.routers == 1
        self.views = [self.ongoing] if self.knows_all else [[0] * most for _ in range(fleet.routers)]
        self.asked_s = [] if self.knows_all else [[0.0] * most for _ in range(fleet.routers)]
        self.events: list[tuple[float, int, int, list[int]]] = []
        self.turns = [self.dice.randrange(most) for _ in range(fleet.routers)]
        self.number, self.busy_s, self.last_s = 0, 0.0, 0.0

    def run(self) -> Outcome:
        for index in self.order:
            now = self.ready[index]
            self._until(now)
            while self.joins and self.joins[-1] <= now:
                self.joins.pop()
                self.active += 1
            router = self.router[index]
            self.pending[router].append(index)
            if self.tasks[router] < min(MOST_TASKS, TASKS_A_REPLICA * self.active):
                self.tasks[router] += 1
                self._send(router, now, 0)
        self._until(math.inf)
        utilisation = self.busy_s / (self.active * self.last_s) if self.last_s else 0.0
        latency_s = np.array(self.done) - self.requests.arrived
        return Outcome(self.requests.arrived, latency_s, utilisation, self.last_s)

    def _until(self, end: float) -> None:
        while self.events and self.events[0][0] <= end:
            now, _, replica, what = heappop(self.events)
            if replica < 0:
                self._send(~replica, now, what[0])
            else:
                self._complete(replica, now, what)

    def _at(self, when: float, replica: int, what: list[int]) -> None:
        self.number += 1
        heappush(self.events, (when, self.number, replica, what))

    def _send(self, router: int, now: float, attempt: int) -> None:
        """One task of a router: the oldest requests, one after the other, as long as it finds replicas with room."""
        pending, view, bound = self.pending[router], self.views[router], self.fleet.max_ongoing
        while pending:
            replica = self._chosen(router, now)
            if view[replica] >= bound or self.ongoing[replica] >= bound:
                view[replica] = self.ongoing[replica]
                backoff_s = min(BACKOFF_S * 2 ** (attempt - 1), MOST_BACKOFF_S) if attempt else 0.0
                self._at(now + backoff_s, ~router, [min(attempt + 1, 10)])
                return
            self._accept(pending.popleft(), replica, now)
            attempt = 0
        self.tasks[router] -= 1

    def _chosen(self, router: int, now: float) -> int:
        if self.active == 1:
            return 0
        if self.fleet.routing == "round robin":
            self.turns[router] = (self.turns[router] + 1) % self.active
            return self.turns[router]
        first = int(self.dice.random() * self.active)
        if self.fleet.routing == "random":
            return first
        second = int(self.dice.random() * (self.active - 1))
        second += second >= first
        return first if self._seen(router, first, now) <= self._seen(router, second, now) else second

    def _seen(self, router: int, replica: int, now: float) -> int:
        """The length of its queue as that router knows it."""
        if not self.knows_all and now - self.asked_s[router][replica] > VIEW_TTL_S:
            self.views[router][replica], self.asked_s[router][replica] = self.ongoing[replica], now
        return self.views[router][replica]

    def _accept(self, index: int, replica: int, now: float) -> None:
        bound_s = self.engine.max_wait_s
        if bound_s is not None and self.backlog_s[replica] > bound_s:
            return
        self.waiting[replica].append(index)
        self.ongoing[replica] += 1
        self.backlog_s[replica] += self.work_s[index]
        if not self.knows_all:  # a replica that accepts says how many it has
            router = self.router[index]
            self.views[router][replica], self.asked_s[router][replica] = self.ongoing[replica], now
        if not self.is_busy[replica]:
            self._start(replica, now)

    def _start(self, replica: int, now: float) -> None:
        queue, first = self.waiting[replica], self.waiting[replica].popleft()
        batch, tokens, work_s = [first], self.tokens[first], self.work_s[first]
        while queue and tokens + self.tokens[queue[0]] <= self.engine.max_batch_tokens:
            item = queue.popleft()
            batch.append(item)
            tokens += self.tokens[item]
            work_s += self.work_s[item]
        self.is_busy[replica] = True
        self.busy_s += work_s + self.engine.fixed_s
        self._at(now + work_s + self.engine.fixed_s, replica, batch)

    def _complete(self, replica: int, now: float, batch: list[int]) -> None:
        self.last_s = now
        self.ongoing[replica] -= len(batch)
        for index in batch:
            self.done[index] = now
            self.backlog_s[replica] -= self.work_s[index]
            if not self.knows_all:
                view = self.views[self.router[index]]
                view[replica] = max(0, view[replica] - 1)
        self.is_busy[replica] = False
        if self.waiting[replica]:
            self._start(replica, now)
