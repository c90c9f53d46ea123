"""What breaks first as a fleet grows, counted from what one of each part takes."""

import math
from dataclasses import dataclass
from typing import Any

from loadtests.scaling.plan import Replica
from loadtests.scaling.queueing import Floats

SCRAPE_TIMEOUT_S = 5.0
# What Prometheus' head takes of memory for one series; 3 to 4 KiB.
SERIES_BYTES = 3.5 * 2**10
# A fleet is not run at its capacity.
UTILISATION = 0.7
NIC_BYTES_PER_S = 25e9 / 8


@dataclass(frozen=True, slots=True)
class Parts:
    """What one of each takes. pairs_per_front: of one HTTP process. bytes_per_pair: request and reply, one way."""

    pairs_per_front: float
    pairs_per_tokenizer_core: float
    series: int
    page_bytes: float
    merge_s_a_page: float
    bytes_per_pair: float


def growth(replica: Replica, parts: Parts, tokens: Floats) -> list[dict[str, Any]]:
    """At 10, 100 and 1,000 replicas, and at a million pairs a second."""
    capacity = UTILISATION * replica.engine.capacity(tokens)
    sizes = [10, 100, 1_000, math.ceil(1e6 / capacity)]
    return [demands(size, size * capacity, parts) for size in sorted(sizes)]


def demands(replicas: int, rate: float, parts: Parts) -> dict[str, Any]:
    """What so many replicas need of everything else. Between hosts a pair travels twice: to the ingress, and on."""
    fronts = math.ceil(rate / (UTILISATION * parts.pairs_per_front))
    return {
        "replicas": replicas,
        "rate_per_s": rate,
        "fronts": fronts,
        "tokenizer_cores": math.ceil(rate / (UTILISATION * parts.pairs_per_tokenizer_core)),
        "series": replicas * parts.series,
        "prometheus_bytes": replicas * parts.series * SERIES_BYTES,
        "page_bytes": replicas * parts.page_bytes,
        "merge_s": replicas * parts.merge_s_a_page,
        "connections": fronts * replicas,
        "bytes_per_s": 2 * rate * parts.bytes_per_pair,
    }


def firsts(replica: Replica, parts: Parts, tokens: Floats) -> dict[str, float]:
    """With how many replicas each of these is full, if there is one of it."""
    capacity = UTILISATION * replica.engine.capacity(tokens)
    return {
        "one front process": UTILISATION * parts.pairs_per_front / capacity,
        "one core that tokenizes": UTILISATION * parts.pairs_per_tokenizer_core / capacity,
        f"one page of all replicas' metrics, merged within {SCRAPE_TIMEOUT_S:g} s": SCRAPE_TIMEOUT_S
        / parts.merge_s_a_page,
        "a Prometheus with 16 GiB": 16 * 2**30 / (parts.series * SERIES_BYTES),
        "a network card of 25 Gbit/s": UTILISATION * NIC_BYTES_PER_S / (2 * parts.bytes_per_pair * capacity),
    }
