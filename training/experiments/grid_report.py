"""A grid's results as a table: what each recipe reaches, how far from the first, and how surely."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import t

COLUMNS = ("recipe", "seeds", "accuracy", "difference", "one order", "swap consistency")
# Seed -> metrics, as the grid's results file has them.
Seeds = Mapping[str, Mapping[str, float]]


class Mean(NamedTuple):
    """A mean over seeds and half the width of its 95 % interval; None of one seed, which has no spread."""

    value: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Student's t: three seeds know little of their own spread, and the interval is as wide as that makes it."""
        if len(values) < 2:
            return cls(values[0], None)
        error = statistics.stdev(values) / len(values) ** 0.5
        return cls(statistics.fmean(values), float(t.ppf(0.975, len(values) - 1)) * error)

    def text(self, sign: str = "") -> str:
        """In per cent, as points."""
        spread = "" if self.half_width is None else f" ± {100 * self.half_width:.1f}"
        return f"{100 * self.value:{sign}.1f}{spread}"


def difference(seeds: Seeds, baseline: Seeds, metric: str) -> Mean | None:
    """Seed by seed: one seed holds out the same pairs, so how hard those are falls out. None if no seed is shared."""
    shared = [seed for seed in seeds if seed in baseline]
    return Mean.of([seeds[s][metric] - baseline[s][metric] for s in shared]) if shared else None


def table(results: Mapping[str, Any]) -> str:
    """Markdown; the first recipe is what the others are compared with."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    baseline = next(iter(results))
    rows += [_row(name, result["seeds"], results[baseline]["seeds"]) for name, result in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, seeds: Seeds, baseline: Seeds) -> tuple[str, ...]:
    accuracy, one_order, consistency = (
        Mean.of([metrics[key] for metrics in seeds.values()]).text()
        for key in ("accuracy", "accuracy_one_order", "swap_consistency")
    )
    gap = None if seeds is baseline else difference(seeds, baseline, "accuracy")
    return name, str(len(seeds)), accuracy, gap.text("+") if gap else "", one_order, consistency
