"""What one caller waits for on an idle service, beside the work of the engine."""

import json
import random
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from loadtests.payloads import WORDS, Payloads, synthetic
from loadtests.report import Target
from loadtests.service_process import started
from loadtests.wire import Client, request

MAX_OVERHEAD_S, AIM_OVERHEAD_S = 1.5e-3, 1.0e-3
MAX_RANK_COST = 1.2
RUN, LENGTH = re.compile(rb"\brun;dur=([0-9.]+)"), re.compile(rb"(?i)content-length: ([0-9]+)")
ENGINE_SECONDS = re.compile(rb"^tinyrm_engine_run_seconds_total ([0-9.e+-]+)$", flags=re.MULTILINE)
# Between two requests: what a service does after a reply is not part of the next one.
PAUSE_S = 1e-3


async def overhead(settings: Mapping[str, object], *, requests: int = 500) -> dict[str, Any]:
    """Measure latency less the engine's run, which each reply states.

    The caller waits in a plain socket: the cost of a client's event loop is not the service's.
    """
    contents = Payloads(synthetic(requests), "synthetic").singles()
    async with started(**settings) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for content in contents[: requests // 10]:
                seconds_beside_run(connection, content)
            seconds = [seconds_beside_run(connection, content) for content in contents]
    p50_s, p99_s = map(float, np.percentile(seconds, [50, 99]))
    target = Target("p50 beside the engine", p50_s * 1e3, MAX_OVERHEAD_S * 1e3, "at most", " ms")
    return {
        "p50_s": p50_s,
        "p99_s": p99_s,
        "requests": requests,
        "aim_s": AIM_OVERHEAD_S,
        "targets": [target.record()],
    }


def seconds_beside_run(connection: socket.socket, content: bytes) -> float:
    """Return the latency of one request less the engine's run. Raises ValueError if the reply does not state it."""
    time.sleep(PAUSE_S)
    started_at = time.perf_counter()
    connection.sendall(content)
    reply = b""
    while not is_complete(reply):
        received = connection.recv(65536)
        if not received:
            raise ValueError("the connection ended before the reply did")
        reply += received
    seconds = time.perf_counter() - started_at
    stated = RUN.search(reply)
    if stated is None:
        raise ValueError(f"no run in Server-Timing of {reply[:100]!r}")
    return seconds - float(stated.group(1)) / 1e3


def is_complete(reply: bytes) -> bool:
    head, end, body = reply.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return bool(end and length and len(body) >= int(length.group(1)))


async def rank(settings: Mapping[str, object], *, responses: int = 16, calls: int = 8) -> dict[str, Any]:
    """Measure the seconds of each /v1/rank call over the seconds that the engine ran for it. Raises ValueError."""
    bodies = [request("/v1/rank", json.dumps(group(responses, seed)).encode()) for seed in range(calls)]
    async with started(**settings) as service:
        client = Client(service.port)
        await client.send(bodies[0])
        seconds, shares, comparisons = [], [], 0
        for body in bodies:
            before, started_at = await engine_seconds(client), time.perf_counter()
            reply = await client.send(body)
            seconds.append(time.perf_counter() - started_at)
            if reply.status != 200:
                raise ValueError(f"/v1/rank returned {reply.status}: {reply.body[:200]!r}")
            comparisons = json.loads(reply.body)["comparisons"]
            shares.append(seconds[-1] / (await engine_seconds(client) - before))
        client.close()
    target = Target("seconds of a rank to the engine's own", float(np.median(shares)), MAX_RANK_COST, "at most")
    return {
        "responses": responses,
        "comparisons": comparisons,
        "calls": calls,
        "p50_s": float(np.median(seconds)),
        "targets": [target.record()],
    }


async def engine_seconds(client: Client) -> float:
    found = ENGINE_SECONDS.search((await client.get("/metrics")).body)
    if not found:
        raise ValueError("/metrics has no tinyrm_engine_run_seconds_total")
    return float(found.group(1))


def group(responses: int, seed: int) -> dict[str, Any]:
    """Return a prompt of 20 words with responses of 20 to 80."""
    dice = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(dice.choices(WORDS, k=words))

    return {"prompt": text(20), "responses": [text(dice.randint(20, 80)) for _ in range(responses)]}
