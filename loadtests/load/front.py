"""The HTTP front: its rate with an engine that does nothing, its overhead on one request, and scrapes of /metrics."""

import asyncio
import http.client
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, cast

import numpy as np

from loadtests.payloads import Payloads, synthetic
from loadtests.report import Target
from loadtests.service_process import START_TIMEOUT_S, Service, started
from loadtests.traffic import Tally, closed_loop
from loadtests.wire import Client, Reply

CALLERS, BATCH_ITEMS = 16, 32
MAX_SCRAPE_S, MAX_SERIES = 20e-3, 1500
# Far more often than a Prometheus scrapes, for enough samples.
SCRAPE_EVERY_S = 0.1
MAX_OVERHEAD_S = AIM_OVERHEAD_S = 1.0e-3
# Of single comparisons, on two cores with the load generator, whatever the number of front-end processes.
MIN_REQUESTS_PER_S = 2000
RUN, LENGTH = re.compile(rb"\brun;dur=([0-9.]+)"), re.compile(rb"(?i)content-length: ([0-9]+)")
# Between two requests on an idle service: what it does after a reply is not part of the next request.
PAUSE_S = 1e-3
SERIES = re.compile(r"^(\w+?)(?:_bucket|_sum|_count)?[{ ]", flags=re.MULTILINE)


async def ceiling(
    payloads: Payloads, settings: Mapping[str, object], *, seconds: float = 10, workers: Sequence[int] = (1, 2)
) -> dict[str, Any]:
    """Measure one row for each number of front-end processes and each endpoint."""
    rows = []
    for count in workers:
        async with started(**{**settings, "engine": "null", "workers": count}) as service:
            for items, requests in ((1, payloads.singles()), (BATCH_ITEMS, payloads.batches(BATCH_ITEMS))):
                await saturate(service.port, requests, CALLERS, seconds / 10)
                before, own_before = cpu_seconds(service), time.process_time()
                tally = await saturate(service.port, requests, CALLERS, seconds)
                cpu_s, own_s = cpu_seconds(service) - before, time.process_time() - own_before
                rate, answered = tally.answered / seconds, max(tally.answered, 1)
                row = {"workers": count, "items": items, "requests_per_s": rate, "comparisons_per_s": rate * items}
                row |= {"cpu_s_per_request": cpu_s / answered, "generator_cpu_s_per_request": own_s / answered}
                rows.append(row | tally.record() | {"broken": tally.broken()})
    most = max(row["requests_per_s"] for row in rows if row["items"] == 1)
    return {"rows": rows, "targets": [Target("requests a second", most, MIN_REQUESTS_PER_S, "at least").record()]}


def cpu_seconds(service: Service) -> float:
    """Return the processor time that the service and its children have used."""
    return sum(sum(process.cpu_times()[:2]) for process in service.tree())


async def saturate(port: int, requests: Sequence[bytes], callers: int, seconds: float) -> Tally:
    """Run a closed loop as `closed_loop` does, at a third of its cost: the generator shares the service's cores."""
    tally, contents, end = Tally(), cycle(requests), time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Caller(tally, contents, end), "127.0.0.1", port) for _ in range(callers)
    ]
    await asyncio.wait([caller.done for _, caller in opened], timeout=seconds + START_TIMEOUT_S)
    for transport, caller in opened:
        tally.lost += not caller.done.done()
        transport.close()
    return tally


class Caller(asyncio.Protocol):
    """Sends the next request as soon as the reply to the last one is complete, until `end` on the performance counter.

    done: set when the last reply is in, or the connection has ended.
    """

    def __init__(self, tally: Tally, contents: Iterator[bytes], end: float) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tally, self._contents, self._end = tally, contents, end
        self._reply, self._sent_s = b"", 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._reply += data
        if not is_complete(self._reply):
            return
        now = time.perf_counter()
        head, _, body = self._reply.partition(b"\r\n\r\n")
        status, _, fields = head.decode("latin-1").partition("\r\n")
        headers = {} if " 200 " in status else dict(line.lower().split(": ", 1) for line in fields.split("\r\n"))
        self._tally.count(Reply(int(status.split(" ")[1]), headers, body), now - self._sent_s)
        if now < self._end:
            self._send()
        elif not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._tally.lost += 1
            self._tally.losses[f"the connection ended: {exc or 'closed'}"] += 1
            self.done.set_result(None)

    def _send(self) -> None:
        self._tally.sent += 1
        self._reply, self._sent_s = b"", time.perf_counter()
        self._transport.write(next(self._contents))


async def scrapes(
    payloads: Payloads,
    settings: Mapping[str, object],
    *,
    seconds: float = 30,
    callers: int = CALLERS,
    workers: Sequence[int] = (1, 2),
) -> dict[str, Any]:
    """Measure one row for each number of front-end processes."""
    rows = [await scrapes_under_load(payloads, {**settings, "workers": n}, seconds, callers) for n in workers]
    targets = [Target("series", max(row["series_after"] for row in rows), MAX_SERIES, "at most")]
    for row in rows:
        front = f"{row['workers']} front-end processes"
        what = f"scrape under {callers} callers, {front}, p50"
        targets.append(Target(what, row["p50_s"] * 1e3, MAX_SCRAPE_S * 1e3, "at most", " ms"))
        grown = row["series_after"] - row["series_before"]
        targets.append(Target(f"series that came with load, {front}", grown, 0, "at most"))
    return {"clients": callers, "rows": rows, "targets": [target.record() for target in targets]}


async def scrapes_under_load(
    payloads: Payloads, settings: Mapping[str, object], seconds: float, callers: int
) -> dict[str, Any]:
    async with started(**settings) as service:
        idle, before = await asyncio.to_thread(scrape, service.port, seconds / 10)
        client = Client(service.port)
        load = asyncio.create_task(closed_loop(client, payloads.singles(), callers, seconds))
        await asyncio.sleep(seconds / 10)
        busy, after = await asyncio.to_thread(scrape, service.port, seconds * 0.8)
        tally = await load
        client.close()
    series = series_by_metric(after)
    p50_s, p99_s = map(float, np.percentile(busy, [50, 99]))
    return {
        "workers": settings["workers"],
        "requests_per_s": tally.answered / seconds,
        "scrapes": len(busy),
        "idle_p50_s": float(np.median(idle)),
        "p50_s": p50_s,
        "p99_s": p99_s,
        "bytes": len(after),
        "series_before": series_by_metric(before).total(),
        "series_after": series.total(),
        "families": len(series),
        "largest": series.most_common(3),
    }


def scrape(port: int, seconds: float) -> tuple[list[float], str]:
    """Scrape for `seconds`. Return the seconds of each scrape and the last page.

    Blocking, so that the delays of an event loop are not counted.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    durations, text, end = [], "", time.perf_counter() + seconds
    while time.perf_counter() < end:
        started_at = time.perf_counter()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        durations.append(time.perf_counter() - started_at)
        time.sleep(SCRAPE_EVERY_S)
    connection.close()
    return durations, text


def series_by_metric(text: str) -> Counter[str]:
    """Return how many series each metric has, buckets included."""
    return Counter(SERIES.findall(text))


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
