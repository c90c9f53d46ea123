"""How well probabilities are those of being right."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from evaluation.scoring import ScoredPair
from evaluation.statistics import calibration_error
from tinyrm.calibration import raw_margins


class Calibration(BaseModel):
    """How well probabilities are those of being right, at one temperature."""

    model_config = ConfigDict(frozen=True)

    temperature: float
    negative_log_likelihood: float
    brier: float
    expected_calibration_error: float


def calibration_at(scored: Sequence[ScoredPair], temperature: float) -> Calibration:
    """Return how well the same margins are calibrated at another temperature."""
    margins = raw_margins([j.preference for j in scored]) / temperature
    p_right = 1 / (1 + np.exp(-np.clip(margins, -500, 500)))
    return Calibration(
        temperature=temperature,
        negative_log_likelihood=float(np.logaddexp(0, -margins).mean()),
        brier=float(((1 - p_right) ** 2).mean()),
        expected_calibration_error=calibration_error(p_right),
    )
