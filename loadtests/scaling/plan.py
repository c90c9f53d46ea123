"""Replicas and money for a rate and a bound on the 99th percentile, by the simulation."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtests.scaling.queueing import Engine, Floats
from loadtests.scaling.sizing import alone_p99, rate_for, replicas_for

RATES = (10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0)
BOUNDS_S = (0.05, 0.15, 0.5)
# Larger fleets are cells of this many: what a router has to know, and what fails together, stays bounded.
CELL = 100
GPU_BATCH_TOKENS = 16_384
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica's engine and what it costs an hour. is_expected: by a model of the hardware, measured nowhere."""

    name: str
    engine: Engine
    price_per_hour: float
    is_expected: bool


def cpu(engine: Engine, cores: int, price_per_core_hour: float) -> Replica:
    return Replica(f"starter on {cores} cores of this CPU, measured", engine, cores * price_per_core_hour, False)


def expected_gpus(price_per_gpu_hour: float) -> list[Replica]:
    """The plausible rates of one H200 at 512 tokens a reading, and the expected time of one reading alone."""
    return [
        Replica("base on an H200, expected", expected(3450, 0.75e-3), price_per_gpu_hour, True),
        Replica("large on an H200, expected", expected(1300, 1.75e-3), price_per_gpu_hour, True),
    ]


def expected(readings_per_s: float, alone_s: float, tokens: int = 512) -> Engine:
    """The line through one reading alone, and a full batch at that rate."""
    batch_s = GPU_BATCH_TOKENS / tokens / readings_per_s
    s_per_token = (batch_s - alone_s) / (GPU_BATCH_TOKENS - tokens)
    return Engine(alone_s - tokens * s_per_token, s_per_token, max_batch_tokens=GPU_BATCH_TOKENS)


def sized(replica: Replica, tokens: Floats, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """For each rate and bound the replicas, and money per million pairs; None where no number of replicas is enough."""
    rows = []
    cell_rates = [rate_for(CELL, bound_s, replica.engine, tokens) for bound_s in BOUNDS_S]
    for rate in rates:
        cells = [
            cell(replica, replicas_of(rate, bound_s, cell_rate, replica.engine, tokens), rate)
            for bound_s, cell_rate in zip(BOUNDS_S, cell_rates, strict=True)
        ]
        rows.append({"rate_per_s": rate, "cells": cells})
    return asdict(replica) | {
        "capacity_per_s": replica.engine.capacity(tokens),
        "alone_p99_s": alone_p99(replica.engine, tokens),
        "cell_rates_per_s": cell_rates,
        "rows": rows,
    }


def replicas_of(rate: float, bound_s: float, cell_rate: float, engine: Engine, tokens: Floats) -> int | None:
    """In equal cells, as few as can be."""
    if not cell_rate:
        return None
    cells = math.ceil(rate / cell_rate)
    replicas = replicas_for(rate / cells, bound_s, engine, tokens)
    return None if replicas is None else cells * replicas


def cell(replica: Replica, replicas: int | None, rate: float) -> dict[str, Any]:
    if replicas is None:
        return {"replicas": None, "price_per_million": None}
    return {"replicas": replicas, "price_per_million": replicas * replica.price_per_hour / (rate * HOUR_S) * 1e6}
