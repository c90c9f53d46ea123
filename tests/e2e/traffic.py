"""Requests of every kind from several callers, so that every panel of the dashboards has data."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from loadtests.payloads import synthetic
from tests.support.processes import Process

LONG = "a word " * 2000


def requests(pairs: list[dict[str, Any]], seed: int) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Yield path, body and headers, without end."""
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
def traffic(service: Process, pairs: list[dict[str, Any]] | None = None, callers: int = 4) -> Iterator[None]:
    """Send requests meanwhile. Replies are ignored: some are refusals.

    pairs: bodies of /v1/compare; by default synthetic ones.
    """
    stop = threading.Event()

    def call(seed: int) -> None:
        for path, body, headers in requests(pairs or synthetic(64), seed):
            if stop.is_set():
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
