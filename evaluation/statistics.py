"""How good, and how surely: shares with intervals, and calibration."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from evaluation.judge import Judged

RESAMPLES = 2000
BINS = 15


class Share(BaseModel):
    """A mean of values in [0, 1] with its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], groups: Sequence[str], seed: int = 0) -> Self:
        """Percentile bootstrap over groups: pairs of one prompt are not independent, so prompts are drawn."""
        _, group = np.unique(groups, return_inverse=True)
        sums, counts = np.bincount(group, weights=values), np.bincount(group)
        draws = np.random.default_rng(seed).integers(len(counts), size=(RESAMPLES, len(counts)))
        means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        return cls(value=float(np.mean(values)), low=float(low), high=float(high))

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


class Summary(BaseModel):
    """One row of the report.

    length_heuristic: accuracy of "longer is better", or of "shorter is better" in the domains where that is right more
    often, chosen with hindsight: the bar a model has to beat.
    """

    model_config = ConfigDict(frozen=True)

    pairs: int
    prompts: int
    accuracy: Share
    accuracy_one_order: Share
    swap_consistency: Share
    length_heuristic: float
    negative_log_likelihood: float
    brier: float
    expected_calibration_error: float


def by_domain(judged: Sequence[Judged]) -> dict[str, Summary]:
    """Overall first, then each domain by name."""
    domains = sorted({j.pair.domain or "none" for j in judged})
    parts = {domain: [j for j in judged if (j.pair.domain or "none") == domain] for domain in domains}
    bars = {domain: length_heuristic(part) for domain, part in parts.items()}
    overall = sum(bars[domain] * len(part) for domain, part in parts.items()) / len(judged)
    return {"all": summarise(judged, overall)} | {d: summarise(part, bars[d]) for d, part in parts.items()}


def length_heuristic(judged: Sequence[Judged]) -> float:
    longer = float(np.mean([j.longer_is_better for j in judged]))
    return max(longer, 1 - longer)


def summarise(judged: Sequence[Judged], length_bar: float) -> Summary:
    prompts = [j.pair.prompt for j in judged]
    p_right = np.array([j.preference.p_a for j in judged])
    return Summary(
        pairs=len(judged),
        prompts=len(set(prompts)),
        accuracy=Share.of([j.credit for j in judged], prompts),
        accuracy_one_order=Share.of([j.credit_one_order for j in judged], prompts),
        swap_consistency=Share.of([j.is_consistent for j in judged], prompts),
        length_heuristic=length_bar,
        negative_log_likelihood=float(-np.log(np.maximum(p_right, 1e-12)).mean()),
        brier=float(((1 - p_right) ** 2).mean()),
        expected_calibration_error=calibration_error(p_right),
    )


def calibration_error(p_right: NDArray[np.float64]) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over 15 equal bins of confidence.

    p_right: the probability given to the right answer; confidence is that of the answer given (Naeini et al. 2015).
    """
    confidence = np.maximum(p_right, 1 - p_right)
    right = np.where(p_right == 0.5, 0.5, p_right > 0.5)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(p_right))
