"""The temperature that makes a probability of 0.8 right eight times in ten, fitted on pairs that are held out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from evaluation.judge import Judged
from evaluation.statistics import calibration_error
from tinyrm.calibration import LOG_TEMPERATURE_BOUNDS, best_temperature
from tinyrm.errors import InvalidInput


class Calibration(BaseModel):
    """How well probabilities are those of being right, at one temperature."""

    model_config = ConfigDict(frozen=True)

    temperature: float
    negative_log_likelihood: float
    brier: float
    expected_calibration_error: float


def fit_temperature(judged: Sequence[Judged]) -> float:
    """T minimising mean log(1 + exp(-z / T)), z the uncalibrated margin towards the right answer (arXiv 1706.04599).

    Raises InvalidInput where there is no minimum: all pairs are judged rightly, or margins say nothing.
    """
    temperature = best_temperature(_margins(judged))
    if abs(np.log(temperature)) > max(LOG_TEMPERATURE_BOUNDS) - 0.01:
        raise InvalidInput(
            f"no temperature fits these {len(judged)} pairs: the likelihood grows up to {temperature:.2g}; "
            "take more pairs, of which some are judged wrongly"
        )
    return temperature


def calibration_at(judged: Sequence[Judged], temperature: float) -> Calibration:
    """The same answers read at another temperature."""
    margins = _margins(judged) / temperature
    p_right = 1 / (1 + np.exp(-np.clip(margins, -500, 500)))
    return Calibration(
        temperature=temperature,
        negative_log_likelihood=float(np.logaddexp(0, -margins).mean()),
        brier=float(((1 - p_right) ** 2).mean()),
        expected_calibration_error=calibration_error(p_right),
    )


def _margins(judged: Sequence[Judged]) -> NDArray[np.float64]:
    return np.array([np.mean(j.preference.order_margins) for j in judged])
