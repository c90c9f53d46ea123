"""Requests of every kind from several callers, so that every panel of the dashboards has data."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from loadtests.payloads import synthetic
from tests.support.processes import Process

LONG = "a word " * 2000


Request = tuple[str, dict[str, Any], dict[str, str]]


def usual_requests(pairs: list[dict[str, Any]], seed: int) -> Iterator[Request]:
    """Yield what a healthy service gets, without end: path, body and headers."""
    pairs = random.Random(seed).sample(pairs, len(pairs))
    for number, pair in enumerate(cycle(pairs)):
        yield "/v1/compare", pair, {}
        if number % 12 == 3:
            yield "/v1/compare/batch", {"items": pairs[number % 50 : number % 50 + 3]}, {}
        if number % 12 == 6:
            yield "/v1/rank", {"prompt": pair["prompt"], "responses": [p["response_a"] for p in pairs[:3]]}, {}
        if number % 12 == 9:
            yield "/v1/rewards", {"prompt": pair["prompt"], "responses": [p["response_b"] for p in pairs[:2]]}, {}


def requests(pairs: list[dict[str, Any]], seed: int) -> Iterator[Request]:
    """Yield requests of every kind, some of which fail, without end: path, body and headers."""
    pairs = random.Random(seed).sample(pairs, len(pairs))
    for number, pair in enumerate(cycle(pairs)):
        yield "/v1/compare", pair | {"swap": ("on", "off", "on")[number % 3]}, {}
        if number % 6 == 0:
            yield "/v1/compare/batch", {"items": pairs[:6]}, {}
            yield "/v1/rank", {"prompt": pair["prompt"], "responses": [p["response_a"] for p in pairs[:3]]}, {}
            yield "/v1/rewards", {"prompt": pair["prompt"], "responses": [p["response_b"] for p in pairs[:2]]}, {}
            yield "/v1/compare", pair | {"response_b": "[MASK] " + pair["response_b"]}, {}
            yield "/v1/compare", {"prompt": "too short"}, {}
        if number % 24 == 0:
            yield "/v1/compare", pair | {"prompt": LONG}, {}
            yield "/v1/compare", pair, {"X-Request-Timeout-Ms": "1"}


@contextmanager
def traffic(
    service: Process,
    pairs: list[dict[str, Any]] | None = None,
    callers: int = 4,
    kinds: Callable[[list[dict[str, Any]], int], Iterator[Request]] = requests,
    pause_s: float = 0,
) -> Iterator[None]:
    """Send requests meanwhile. Replies are ignored: some are refusals.

    pairs: bodies of /v1/compare; by default synthetic ones.
    kinds: yields the requests, from the pairs and a seed.
    pause_s: how long a caller waits between two requests, on average.
    """
    stop = threading.Event()

    def call(seed: int) -> None:
        pauses = random.Random(seed)
        for path, body, headers in kinds(pairs or synthetic(64), seed):
            if stop.wait(pauses.expovariate(1 / pause_s) if pause_s else 0):
                return
            service.client.post(path, json=body, headers=headers)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
