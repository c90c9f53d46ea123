"""From measurements to the engine that the simulation takes."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from loadtests.scaling.queueing import Engine, Floats


class Answers(Protocol):
    """Of one caller at a time: the tokens of each, what the engine took, what the caller waited."""

    tokens: list[int]
    run_s: list[float]
    latency_s: list[float]


@dataclass(frozen=True, slots=True)
class Fit:
    """spread: runs as measured to runs as fitted. slowdown: of the engine when callers and front use the same cores.

    gap_s: from one batch's end to the next one's begin. front_s: of a request, before it waits for the engine.
    """

    engine: Engine
    front_s: float
    gap_s: float
    slowdown: float
    spread: Floats

    def record(self) -> dict[str, Any]:
        p10, p90 = np.percentile(self.spread, [10, 90])
        return {
            "front_s": self.front_s, "gap_s": self.gap_s, "slowdown": self.slowdown, "samples": len(self.spread),
            "spread_p10": float(p10), "spread_p90": float(p90),
        }  # fmt: skip


def fitted(alone: Answers, saturated: dict[str, float], max_batch_tokens: int) -> Fit:
    """The shape from single runs of many lengths; the height from the stretch in which the engine never rested."""
    tokens, run_s = np.array(alone.tokens, dtype=np.float64), np.array(alone.run_s)
    run_fixed_s, *curve = non_negative_fit(tokens, run_s)
    spread = run_s / (run_fixed_s + curve[0] * tokens + curve[1] * tokens**2)
    per_item = saturated["tokens"] / saturated["items"]
    # The mean of squares is taken from the single runs: the service counts tokens, not their squares.
    squares = float(np.mean(tokens**2)) * (per_item / float(np.mean(tokens))) ** 2
    work_s = saturated["items"] * (curve[0] * per_item + curve[1] * squares)
    slowdown = saturated["engine_s"] / (saturated["batches"] * run_fixed_s + work_s)
    gap_s = max(0.0, (saturated["wall_s"] - saturated["engine_s"]) / saturated["batches"])
    beside_s = float(np.median(np.array(alone.latency_s) - run_s))
    engine = Engine(
        gap_s + slowdown * run_fixed_s, slowdown * curve[0], slowdown * curve[1], max_batch_tokens=max_batch_tokens
    )
    return Fit(engine, max(0.0, beside_s - gap_s), gap_s, slowdown, spread / float(np.mean(spread)))


def non_negative_fit(tokens: Floats, run_s: Floats) -> list[float]:
    """Coefficients of 1, t, t**2, least squares of the relative error; none below 0, which no engine could be."""
    columns = np.stack([np.ones_like(tokens), tokens, tokens**2], axis=1) / run_s[:, None]
    used, found = [0, 1, 2], np.zeros(3)
    while used:
        found = np.zeros(3)
        # Columns of one size: squares of tokens would drown the ones.
        sizes = np.linalg.norm(columns[:, used], axis=0)
        found[used] = np.linalg.lstsq(columns[:, used] / sizes, np.ones(len(tokens)), rcond=None)[0] / sizes
        if found.min() >= 0:
            break
        used.remove(int(np.argmin(found * np.linalg.norm(columns, axis=0))))
    return found.tolist()
