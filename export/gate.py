"""The gate that a lower precision must pass: how many preferences it changes, and how much they meant.

A rounded model changes the preferences of near ties first, since any difference changes those. Whoever prefers either
response of a near tie loses nothing by the other one: with a calibrated margin m, the preferred response is the better
one with probability sigmoid(|m|), so that the other one costs 2 * sigmoid(|m|) - 1, about |m| / 2, of an error. The
share of changed preferences, each weighted by |m|, therefore decides; the plain share is reported beside it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from export.config import ExportOptions
from export.parity import Run, run_alone
from tinyrm.calibration import Outcomes, fit_temperature
from tinyrm.encoding import Encoding
from tinyrm.errors import PrecisionRefused
from tinyrm.manifest import Gate
from tinyrm.readout import read_columns, read_out


class Limits(NamedTuple):
    """The shares of preferences that rounding may change, each weighted by the size of its margin, and unweighted."""

    weighted_flips: float
    flips: float | None = None

    @classmethod
    def of(cls, options: ExportOptions) -> Self:
        return cls(options.max_weighted_flips, options.max_flips)


def compare_preferences(
    precision: str,
    run: Run,
    reference: NDArray[np.float32],
    sequences: Sequence[Encoding],
    *,
    temperature: float,
    limits: Limits,
    outcomes: Outcomes | None = None,
) -> Gate:
    """Return how far `run` is from the reference in its preferences, whether that passes or not.

    reference: logits of the sequences, of `run_alone`.
    sequences: pairs, two by two: A first, B first, A first, ...; or A, B, A, ... if responses are read alone. A
        sequence that is a set is a pair by itself.
    outcomes: of the pairs; None: A is the better response of all.

    Raises PrecisionRefused for logits that are not finite.
    """
    logits = run_alone(run, sequences)
    if not np.isfinite(logits).all():
        raise PrecisionRefused(f"{precision} returns logits that are not finite; no bundle was written")
    exact, lower = margins_of(sequences, reference), margins_of(sequences, logits)
    shift = np.abs(expit(exact / temperature) - expit(lower / temperature))
    mates = list(sequences[:8])
    moved = np.abs(run(mates) - run_alone(run, mates))
    changed = (exact > 0) != (lower > 0)
    return Gate(
        pairs=len(exact),
        flips=float(changed.mean()),
        max_flips=limits.flips,
        weighted_flips=weighted_share(changed, np.abs(exact)),
        max_weighted_flips=limits.weighted_flips,
        mean_probability_shift=float(shift.mean()),
        max_probability_shift=float(shift.max()),
        temperature=fit_temperature(lower, outcomes),
        alone_and_in_a_batch=float(moved.max()),
    )


def margins_of(sequences: Sequence[Encoding], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the uncalibrated margins [pairs] of sequences in the order of `compare_preferences`."""
    each = 1 if sequences[0].columns else 2
    parts = (slice(i, i + each) for i in range(0, len(sequences), each))
    return np.array([read_out(read_columns(sequences[part], logits[part]), 1.0).margin for part in parts])


def weighted_share(changed: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """Return the share of the weight that changed; the plain share if nothing has a weight."""
    return float(np.average(changed, weights=weights if weights.any() else None))


def passes(report: Gate) -> bool:
    """Return whether a report is within its limits."""
    limits = ((report.weighted_flips, report.max_weighted_flips), (report.flips, report.max_flips))
    return all(value is None or limit is None or value <= limit for value, limit in limits)


def refuse_failed(precision: str, report: Gate) -> Gate:
    """Return a report that passes. Raises PrecisionRefused."""
    if not passes(report):
        raise PrecisionRefused(refusal(precision, report))
    return report


def refusal(precision: str, report: Gate) -> str:
    """Return why a report is refused, and what could be done."""
    plain = "" if report.max_flips is None else f", {report.max_flips:.2%} are allowed"
    return (
        f"{precision} flips {report.flips:.2%} of {report.pairs} preferences{plain}; weighted by their margins "
        f"{report.weighted_flips:.3%}, {report.max_weighted_flips:.3%} is allowed (probabilities move by "
        f"{report.mean_probability_shift:.4f} on average); no bundle was written. Leave it out, or allow more with "
        f"--max-weighted-flips{'' if report.max_flips is None else ' and --max-flips'}"
    )
