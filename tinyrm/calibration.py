"""One temperature, so that a probability of 0.8 is right eight times in ten. Needs scipy, which serving does not."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

LOG_TEMPERATURE_BOUNDS = (-4.0, 4.0)


def best_temperature(margins: NDArray[np.float64]) -> float:
    """T minimising mean log(1 + exp(-margin / T)), margins towards the right answer (arXiv 1706.04599)."""

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margins / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded").x))
