"""One temperature, so that a probability of 0.8 is right eight times in ten."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from tinyrm.pairs import PreferencePair
from tinyrm.scorer import Scorer
from tinyrm.spec import ClozeSpec

LOG_TEMPERATURE_BOUNDS = (-4.0, 4.0)


def fit_temperature(scorer: Scorer, spec: ClozeSpec, pairs: list[PreferencePair]) -> float:
    """The temperature of least negative log-likelihood on pairs the model did not learn from, both orders read."""
    instructions = [spec.instruction_for_pair(p.domain) for p in pairs]
    preferences = scorer.score([p.comparison() for p in pairs], instructions)
    return best_temperature(np.array([p.margin * scorer.temperature for p in preferences]))


def best_temperature(margins: NDArray[np.float64]) -> float:
    """T minimising mean log(1 + exp(-margin / T)), margins towards the right answer (arXiv 1706.04599)."""

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margins / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded").x))
