"""Shares with 95 % intervals, and calibration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from evaluation.scoring import ScoredPair
from tinyrm.calibration import raw_margins

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
        """Return the share of `values`; those of one group depend on each other."""
        return cls.from_estimate(Estimate.of(values, groups, seed))

    @classmethod
    def from_estimate(cls, estimate: "Estimate") -> Self:
        low, high = np.percentile(estimate.draws, [2.5, 97.5])
        return cls(value=estimate.value, low=float(low), high=float(high))

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


class Difference(BaseModel):
    """The difference of two shares of the same items with its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    @classmethod
    def between(cls, one: "Estimate", other: "Estimate") -> Self:
        """Return `one` minus `other`. Both were drawn over the same groups with one seed: the difference is paired."""
        low, high = np.percentile(one.draws - other.draws, [2.5, 97.5])
        return cls(value=one.value - other.value, low=float(low), high=float(high))

    def __str__(self) -> str:
        return f"{100 * self.value:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and the means of bootstrap samples of the prompts: draws [RESAMPLES], which give intervals."""

    value: float
    draws: NDArray[np.float64]

    @classmethod
    def of(cls, values: Sequence[float], groups: Sequence[str], seed: int = 0) -> Self:
        """Return a bootstrap over groups: pairs of one prompt are not independent, so prompts are drawn.

        Estimates over the same groups with one seed are drawn together; strata need a seed each.
        """
        _, group = np.unique(groups, return_inverse=True)
        sums, counts = np.bincount(group, weights=values), np.bincount(group)
        draws = np.random.default_rng(seed).integers(len(counts), size=(RESAMPLES, len(counts)))
        return cls(float(np.mean(values)), sums[draws].sum(axis=1) / counts[draws].sum(axis=1))


def combine(estimates: Mapping[str, Estimate], weights: Mapping[str, float]) -> Estimate:
    """Return the weighted mean of the estimates; weights of missing ones are ignored."""
    total = sum(weights[name] for name in estimates)
    # Divided last, so that a mean of ones is one.
    value = sum(weights[name] * estimate.value for name, estimate in estimates.items()) / total
    draws = np.sum([weights[name] * estimate.draws for name, estimate in estimates.items()], axis=0) / total
    return Estimate(float(value), draws)


def mean(estimates: Mapping[str, Estimate]) -> Estimate:
    return combine(estimates, dict.fromkeys(estimates, 1.0))


class Summary(BaseModel):
    """One row of the report.

    orders: 2, or 1 for a model that reads responses alone. Then no figure depends on an order: each order alone is as
        accurate as both, the position adds 0, and swap consistency is 1.
    accuracy: of both orders together.
    accuracy_chosen_first, accuracy_chosen_second: of one order alone, by the place of the better response.
    position_margin: mean uncalibrated log-odds that the first place adds; 0 without such a bias.
    position_size: mean of their absolute value on each pair; 0 only if no preference depends on the order.
    length_heuristic: accuracy of "longer is better", or of "shorter is better" in the domains where that is right more
        often. The better of the two is chosen in hindsight; a model must beat it.
    over_length_heuristic: accuracy minus it, on the same draws of prompts.
    negative_log_likelihood, brier, expected_calibration_error: against the probability of the pairs that have one.
    """

    model_config = ConfigDict(frozen=True)

    pairs: int
    prompts: int
    orders: int
    accuracy: Share
    accuracy_one_order: Share
    accuracy_chosen_first: float
    accuracy_chosen_second: float
    position_margin: float
    position_size: float
    swap_consistency: Share
    length_heuristic: float
    over_length_heuristic: Difference
    negative_log_likelihood: float
    brier: float
    expected_calibration_error: float


def by_domain(scored: Sequence[ScoredPair]) -> dict[str, Summary]:
    """Return a summary of all pairs, then of each domain by name."""
    return {"all": summarise(scored)} | {domain: summarise(part) for domain, part in split_domains(scored).items()}


def split_domains(scored: Sequence[ScoredPair]) -> dict[str, list[ScoredPair]]:
    """Return the pairs of each domain, by name."""
    domains = sorted({domain_of(j) for j in scored})
    return {domain: [j for j in scored if domain_of(j) == domain] for domain in domains}


def domain_of(scored: ScoredPair) -> str:
    return scored.pair.domain or "none"


def length_heuristic(scored: Sequence[ScoredPair]) -> list[float]:
    """Return the credit of "longer is better" on each pair, or of "shorter is better" where that is right more often.

    Which of the two is decided for each domain.
    """
    longer = np.array([j.longer_is_better for j in scored])
    domains = np.array([domain_of(j) for j in scored])
    for domain in np.unique(domains):
        own = domains == domain
        if longer[own].mean() < 0.5:
            longer[own] = 1 - longer[own]
    credits_: list[float] = longer.tolist()
    return credits_


def summarise(scored: Sequence[ScoredPair]) -> Summary:
    prompts = [j.pair.prompt for j in scored]
    accuracy = Estimate.of([j.credit for j in scored], prompts)
    by_length_alone = Estimate.of(length_heuristic(scored), prompts)
    p_right, targets = np.array([j.preference.p_a for j in scored]), targets_of(scored)
    return Summary(
        pairs=len(scored),
        prompts=len(set(prompts)),
        orders=scored[0].orders,
        accuracy=Share.from_estimate(accuracy),
        accuracy_one_order=Share.of([j.credit_one_order for j in scored], prompts),
        accuracy_chosen_first=float(np.mean([j.preference.order_margins[0] > 0 for j in scored])),
        accuracy_chosen_second=float(np.mean([j.preference.order_margins[-1] > 0 for j in scored])),
        position_margin=float(np.mean([j.position_margin for j in scored])),
        position_size=float(np.mean([abs(j.position_margin) for j in scored])),
        swap_consistency=Share.of([j.is_consistent for j in scored], prompts),
        length_heuristic=by_length_alone.value,
        over_length_heuristic=Difference.between(accuracy, by_length_alone),
        negative_log_likelihood=float(-cross_log(p_right, targets).mean()),
        brier=float(((targets - p_right) ** 2).mean()),
        expected_calibration_error=calibration_error(p_right, targets),
    )


def targets_of(scored: Sequence[ScoredPair]) -> NDArray[np.float64]:
    """Return the probability that the chosen response is the better one, [pairs]: 1 of a plain verdict."""
    return np.array([j.pair.target for j in scored])


def cross_log(p_right: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected log-likelihood of each pair, [pairs]; probabilities below 1e-12 count as that."""
    right, wrong = (np.log(np.maximum(p, 1e-12)) for p in (p_right, 1 - p_right))
    return targets * right + (1 - targets) * wrong


# Response lengths within this share of the longer one match: no reader sees at a glance which has more to say.
LENGTH_TOLERANCE: Final = 0.1
# The last kind overlaps with the others.
LENGTHS: Final[Mapping[str, Callable[[ScoredPair], bool]]] = {
    "chosen longer": lambda j: j.longer_is_better > 0.5,
    "chosen shorter": lambda j: j.longer_is_better < 0.5,
    "equally long": lambda j: j.longer_is_better == 0.5,
    "length-matched": lambda j: j.length_difference <= LENGTH_TOLERANCE,
}


def split_lengths(scored: Sequence[ScoredPair]) -> dict[str, list[ScoredPair]]:
    """Return the pairs of each kind by length, in characters; empty kinds are left out."""
    parts = {name: [j for j in scored if belongs(j)] for name, belongs in LENGTHS.items()}
    return {name: part for name, part in parts.items() if part}


def by_length(scored: Sequence[ScoredPair]) -> dict[str, Summary]:
    """Return a summary of all pairs, then of each kind by length."""
    return {"all": summarise(scored)} | {name: summarise(part) for name, part in split_lengths(scored).items()}


class Bin(BaseModel):
    """Preferences of about the same confidence.

    pairs: their number.
    """

    model_config = ConfigDict(frozen=True)

    confidence: float
    accuracy: float
    pairs: int


def reliability(p_right: NDArray[np.float64], targets: NDArray[np.float64] | None = None) -> list[Bin]:
    """Return the bins of the expected calibration error that hold any pairs, from 0.5 upwards.

    p_right [pairs]: probability of the right response. Confidence is the probability of the preferred one.
    targets [pairs]: probability that the right response is the better one, as far as is known; None: 1.
    """
    confidence = np.maximum(p_right, 1 - p_right)
    known = np.ones(len(p_right)) if targets is None else targets
    right = np.where(p_right == 0.5, 0.5, np.where(p_right > 0.5, known, 1 - known))
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (confidence, right)]
    return [
        Bin(confidence=float(sums[0][i] / n), accuracy=float(sums[1][i] / n), pairs=int(n))
        for i, n in enumerate(counts)
        if n
    ]


def calibration_error(p_right: NDArray[np.float64], targets: NDArray[np.float64] | None = None) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy over 15 equal bins of confidence.

    p_right, targets [pairs]: as of `reliability` (Naeini et al. 2015).
    """
    gaps = [bin_.pairs * abs(bin_.confidence - bin_.accuracy) for bin_ in reliability(p_right, targets)]
    return sum(gaps) / len(p_right)


class Calibration(BaseModel):
    """How far probabilities are from the frequency of being right, at one temperature."""

    model_config = ConfigDict(frozen=True)

    temperature: float
    negative_log_likelihood: float
    brier: float
    expected_calibration_error: float


def calibration_at(
    scored: Sequence[ScoredPair], temperature: float, of_pairs: Sequence[float] | None = None
) -> Calibration:
    """Return the calibration of the same margins at another temperature.

    of_pairs: that of each pair, where domains have their own; None for `temperature`.
    """
    margins = raw_margins([j.preference for j in scored]) / (temperature if of_pairs is None else np.array(of_pairs))
    p_right, targets = 1 / (1 + np.exp(-np.clip(margins, -500, 500))), targets_of(scored)
    of_margins = targets * np.logaddexp(0, -margins) + (1 - targets) * np.logaddexp(0, margins)
    return Calibration(
        temperature=temperature,
        negative_log_likelihood=float(of_margins.mean()),
        brier=float(((targets - p_right) ** 2).mean()),
        expected_calibration_error=calibration_error(p_right, targets),
    )
