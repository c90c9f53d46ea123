"""The real service on this machine: what a batch takes, and whether the simulation foretells what callers then see."""

import asyncio
import json
import re
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from loadtests.arrivals import open_loop, repeated
from loadtests.load.scrape import scrape
from loadtests.payloads import Payloads
from loadtests.scaling.fit import Fit, fitted
from loadtests.scaling.queueing import Engine, Fleet, Floats, Requests, simulate
from loadtests.service_process import Service, known_settings, started
from loadtests.tally import Tally
from loadtests.wire import Client, Reply, request

RUN = re.compile(r"\brun;dur=([0-9.]+)")
COUNTERS = re.compile(
    r"^tinyrm_(engine_run_seconds_total|batch_tokens_count|batch_tokens_sum|stage_duration_seconds_count"
    r'\{stage="total"\}) (\S+)$',
    flags=re.MULTILINE,
)
# What suits a CPU, where the service itself chooses.
CPU_BATCH_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Check:
    """idle_s: with one caller. busy_s: with `callers`, more than enough to keep the engine from waiting."""

    idle_s: float = 30
    busy_s: float = 40
    callers: int = 16
    open_s: float = 75
    utilisations: tuple[float, ...] = (0.3, 0.5, 0.7, 0.85)
    settings: dict[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class Seen:
    """The answers one by one. `ask` is a tally's, so whatever asks for a tally can ask for it."""

    tally: Tally = field(default_factory=Tally)
    due: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    reply_bytes: list[int] = field(default_factory=list)

    async def ask(self, client: Client, content: bytes, due: float) -> Reply | None:
        reply = await self.tally.ask(client, content, due)
        ended = time.perf_counter()
        if reply is not None and reply.status == 200:
            stated = RUN.search(reply.headers["server-timing"])
            if stated is None:
                raise ValueError("no run in Server-Timing: this service does not say what its engine took")
            self.due.append(due)
            self.tokens.append(json.loads(reply.body)["usage"]["tokens"])
            self.latency_s.append(ended - due)
            self.run_s.append(float(stated.group(1)) / 1e3)
            self.reply_bytes.append(len(reply.body) + sum(len(name) + len(v) + 4 for name, v in reply.headers.items()))
        return reply


async def measure(payloads: Payloads, plan: Check) -> dict[str, Any]:
    """What was measured, the engine that was fitted to it, and each utilisation measured and foretold."""
    requests = payloads.singles()
    begun = time.perf_counter()
    async with started(**plan.settings) as service:
        start_s = time.perf_counter() - begun
        alone = await closed(service, requests, 1, plan.idle_s)
        before_after, busy = await saturated(service, requests, plan)
        fit = fitted(alone, before_after, batch_tokens(plan))
        capacity = before_after["items"] / before_after["wall_s"]
        rows, seen = [], [alone, busy]
        for utilisation in plan.utilisations:
            loaded = await opened(service, requests, utilisation * capacity, plan.open_s)
            rows.append({"utilisation": utilisation} | compared(loaded, fit))
            seen.append(loaded)
        page = (await asyncio.to_thread(scrape, service.port, 0.2, 0.02))[1]
    return {
        "start_s": start_s, "capacity_per_s": capacity, "saturated": before_after, "engine": asdict(fit.engine),
        "fit": fit.record(), "rows": rows, "tokens": [size for one in seen for size in one.tokens], "page": page,
        "request_bytes": float(np.mean([len(content) for content in requests])),
        "reply_bytes": float(np.mean(alone.reply_bytes)),
        "lost": sum(one.tally.lost for one in seen), "refused": sum(one.tally.refused for one in seen),
    }  # fmt: skip


def batch_tokens(plan: Check) -> int:
    """As the service was told, or as it chooses on a CPU."""
    stated = plan.settings.get("max_batch_tokens", known_settings().get("max_batch_tokens", 0))
    return int(str(stated)) or CPU_BATCH_TOKENS


async def closed(service: Service, requests: list[bytes], callers: int, seconds: float) -> Seen:
    """So many callers, each of whom asks again when it has its answer; one request before, to warm up."""
    seen, todo, client = Seen(), repeated(requests), Client(service.port, timeout_s=120)
    await client.ask(requests[0])
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            await seen.ask(client, next(todo), time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    client.close()
    return seen


async def saturated(service: Service, requests: list[bytes], plan: Check) -> tuple[dict[str, float], Seen]:
    """What the service counted in a stretch in which somebody always waited."""
    ramp_s = plan.busy_s / 10
    load = asyncio.create_task(closed(service, requests, plan.callers, plan.busy_s + 2 * ramp_s))
    await asyncio.sleep(ramp_s)
    before = await counted(service)
    await asyncio.sleep(plan.busy_s)
    after = await counted(service)
    return {name: after[name] - before[name] for name in after}, await load


async def counted(service: Service) -> dict[str, float]:
    client = Client(service.port)
    page = (await client.ask(request("/metrics", method="GET"))).body.decode()
    now = time.perf_counter()
    client.close()
    found = {name: float(value) for name, value in COUNTERS.findall(page)}
    return {
        "wall_s": now,
        "engine_s": found["engine_run_seconds_total"],
        "batches": found["batch_tokens_count"],
        "tokens": found["batch_tokens_sum"],
        "items": found['stage_duration_seconds_count{stage="total"}'],
    }


async def opened(service: Service, requests: list[bytes], rate: float, seconds: float) -> Seen:
    """Poisson arrivals at that rate, all of them answered or refused."""
    seen, client = Seen(), Client(service.port, timeout_s=120)
    await open_loop(client, requests, rate, seen, seconds=seconds)
    client.close()
    return seen


def compared(seen: Seen, fit: Fit) -> dict[str, Any]:
    """The same arrivals of the same lengths, measured and simulated; spread: the runs' own, drawn by chance."""
    order = np.argsort(seen.due)
    arrived, tokens = np.array(seen.due)[order], np.array(seen.tokens, dtype=np.float64)[order]
    work_s = fit.engine.work_s(tokens) * np.random.default_rng(17).choice(fit.spread, len(tokens))
    foretold = simulate(Requests(arrived - arrived[0], tokens, work_s), fit.engine, Fleet(1, front_s=fit.front_s))
    measured = np.array(seen.latency_s)
    return {
        "requests": len(measured),
        "rate_per_s": len(measured) / float(arrived[-1] - arrived[0]),
        "foretold_utilisation": foretold.utilisation,
        "p50_s": _percentile(measured, 50), "p99_s": _percentile(measured, 99),
        "foretold_p50_s": foretold.percentile_s(0.5), "foretold_p99_s": foretold.percentile_s(0.99),
    }  # fmt: skip


def _percentile(values: Floats, percent: float) -> float:
    return float(np.percentile(values, percent))


def engine_of(measured: dict[str, Any]) -> Engine:
    return Engine(**measured["engine"])
