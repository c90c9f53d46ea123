"""What the front costs: requests a second with an engine that does nothing, and what a request costs beside its run."""

import re
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from loadtests.arrivals import closed_loop
from loadtests.bench.statistics import percentile
from loadtests.payloads import Payloads, synthetic
from loadtests.service_process import NotServing, known_settings, started
from loadtests.targets import Target
from loadtests.wire import Client

MOST_OVERHEAD_S, AIM_OVERHEAD_S = 1.5e-3, 1.0e-3
RUN, LENGTH = re.compile(rb"\brun;dur=([0-9.]+)"), re.compile(rb"(?i)content-length: ([0-9]+)")
# Between two requests of the one caller: what a service does after a reply is not part of the next one.
PAUSE_S = 1e-3


@dataclass(frozen=True, slots=True)
class Front:
    seconds: float = 10
    clients: int = 16
    batch_items: int = 32
    workers: tuple[int, ...] = (1, 2)
    idle_requests: int = 500
    settings: dict[str, object] = field(default_factory=dict)


async def ceiling(payloads: Payloads, plan: Front) -> list[dict[str, Any]]:
    """One row for each number of front-end processes and endpoint; where it cannot run, the reason."""
    known, rows = known_settings(), []
    for workers in plan.workers:
        if workers > 1 and "workers" not in known:
            rows.append({"workers": workers, "reason": "this service has no setting TINYRM_WORKERS"})
            continue
        chosen = {"engine": "null"} | ({"workers": workers} if "workers" in known else {})
        try:
            async with started(**plan.settings | chosen) as service:
                rows += await endpoints(service.port, payloads, workers, plan)
        except NotServing as reason:
            rows.append({"workers": workers, "reason": f"no engine that does nothing: {reason}"})
    return rows


async def endpoints(port: int, payloads: Payloads, workers: int, plan: Front) -> list[dict[str, Any]]:
    rows, contents = [], {1: payloads.singles(), plan.batch_items: payloads.batches(plan.batch_items)}
    for items, requests in contents.items():
        client = Client(port)
        await closed_loop(client, requests, plan.clients, plan.seconds / 10)
        tally = await closed_loop(client, requests, plan.clients, plan.seconds)
        client.close()
        rate = tally.answered / plan.seconds
        row = {"workers": workers, "items": items, "requests_per_s": rate, "comparisons_per_s": rate * items}
        rows.append(row | tally.figures() | {"broken": tally.broken()})
    return rows


async def overhead(plan: Front) -> dict[str, Any]:
    """One caller at a time on an idle service: latency less the engine's run, as the reply itself states it.

    The caller waits in a plain socket, since what a caller's own event loop costs is not the service's.
    """
    requests = Payloads(synthetic(plan.idle_requests), "synthetic").singles()
    async with started(**plan.settings) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            warm_up = requests[: plan.idle_requests // 10]
            outside = [beside_run(connection, content) for content in [*warm_up, *requests]][len(warm_up) :]
    median = percentile(outside, 0.5)
    return {
        "p50_s": median,
        "p99_s": percentile(outside, 0.99),
        "requests": len(outside),
        "aim_s": AIM_OVERHEAD_S,
        "targets": [Target("p50 beside the engine", median * 1e3, MOST_OVERHEAD_S * 1e3, "at most", " ms").record()],
    }


def beside_run(connection: socket.socket, content: bytes) -> float:
    """Seconds of one request that were not spent in the engine. Raises ValueError if the reply does not say."""
    time.sleep(PAUSE_S)
    begun = time.perf_counter()
    connection.sendall(content)
    reply = b""
    while not is_whole(reply):
        received = connection.recv(65536)
        if not received:
            raise ValueError("the connection ended before the reply did")
        reply += received
    took_s = time.perf_counter() - begun
    stated = RUN.search(reply)
    if stated is None:
        raise ValueError(f"no run in Server-Timing of {reply[:100]!r}")
    return took_s - float(stated.group(1)) / 1e3


def is_whole(reply: bytes) -> bool:
    head, end, body = reply.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return bool(end and length and len(body) >= int(length.group(1)))
