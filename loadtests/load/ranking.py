"""What ranking costs beside the engine's work for its comparisons."""

import json
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

from loadtests.bench.statistics import percentile
from loadtests.payloads import WORDS
from loadtests.service_process import started
from loadtests.targets import Target
from loadtests.wire import Client, request

MOST_COST = 1.2
ENGINE_SECONDS = re.compile(rb"^tinyrm_engine_run_seconds_total ([0-9.e+-]+)$", flags=re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ranking:
    responses: int = 16
    calls: int = 8
    settings: dict[str, object] = field(default_factory=dict)


async def measure(plan: Ranking) -> dict[str, Any]:
    """One caller; seconds of each call to /v1/rank over the seconds that the engine ran for it. Raises ValueError."""
    bodies = [request("/v1/rank", json.dumps(group(plan.responses, seed)).encode()) for seed in range(plan.calls)]
    async with started(**plan.settings) as service:
        client = Client(service.port)
        await client.ask(bodies[0])
        shares, comparisons = [], 0
        for body in bodies:
            before, begun = await engine_seconds(client), time.perf_counter()
            reply = await client.ask(body)
            took_s = time.perf_counter() - begun
            if reply.status != 200:
                raise ValueError(f"/v1/rank answered {reply.status}: {reply.body[:200]!r}")
            comparisons = json.loads(reply.body)["comparisons"]
            shares.append((took_s, took_s / (await engine_seconds(client) - before)))
        client.close()
    share = percentile([share for _, share in shares], 0.5)
    return {
        "responses": plan.responses,
        "comparisons": comparisons,
        "calls": plan.calls,
        "p50_s": percentile([took_s for took_s, _ in shares], 0.5),
        "targets": [Target("seconds of a rank to the engine's own", share, MOST_COST, "at most").record()],
    }


async def engine_seconds(client: Client) -> float:
    found = ENGINE_SECONDS.search((await client.ask(request("/metrics", method="GET"))).body)
    if not found:
        raise ValueError("/metrics does not say how long the engine ran")
    return float(found.group(1))


def group(responses: int, seed: int) -> dict[str, Any]:
    """A prompt of 20 words, responses of 20 to 80."""
    dice = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(dice.choices(WORDS, k=words))

    return {"prompt": text(20), "responses": [text(dice.randint(20, 80)) for _ in range(responses)]}
