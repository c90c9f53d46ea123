"""Test the temperature: a known one is found, and pairs that determine none are refused."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyrm.calibration import fit_temperature, is_bounded, raw_margins, refuse_bounded
from tinyrm.comparison import Preference
from tinyrm.errors import InvalidInput
from tinyrm.ranking import sigmoid


def simulated(overconfidence: float, count: int = 40_000) -> NDArray[np.float64]:
    """Return margins for the better response that are `overconfidence` times too large."""
    rng = np.random.default_rng(0)
    honest = rng.normal(scale=2.0, size=count)
    right = rng.random(count) < 1 / (1 + np.exp(-honest))
    return overconfidence * np.where(right, honest, -honest)


@pytest.mark.parametrize("overconfidence", [0.25, 1.0, 3.0])
def test_temperature_of_simulated_margins_is_recovered(overconfidence: float) -> None:
    # At forty thousand samples the estimate is within about one per cent.
    assert fit_temperature(simulated(overconfidence)) == pytest.approx(overconfidence, rel=0.03)


def test_calibrated_margins_are_right_as_often_as_predicted() -> None:
    margins = simulated(4.0) / fit_temperature(simulated(4.0))
    confident = np.abs(margins - np.sign(margins) * 1.4) < 0.1
    assert np.mean(margins[confident] > 0) == pytest.approx(sigmoid(1.4), abs=0.03)


@pytest.mark.parametrize("margins", [np.full(10, 0.5), np.array([0.5]), np.array([-1.0, -2.0])])
def test_pairs_all_right_or_all_wrong_determine_no_temperature(margins: NDArray[np.float64]) -> None:
    temperature = fit_temperature(margins)
    assert np.isfinite(temperature)
    assert temperature > 0
    assert is_bounded(temperature)
    with pytest.raises(InvalidInput, match=f"no temperature fits these {len(margins)} pairs"):
        refuse_bounded(temperature, len(margins))


def test_a_temperature_that_pairs_determine_is_not_refused() -> None:
    temperature = fit_temperature(simulated(3.0))
    assert not is_bounded(temperature)
    refuse_bounded(temperature, 40_000)


def test_raw_margins_are_means_over_orders_before_calibration() -> None:
    preferences = [Preference(0.5, 0.5, 0.1, (3.0, -1.0)), Preference(0.5, 0.5, 0.2, (2.0,))]
    assert raw_margins(preferences).tolist() == [1.0, 2.0]
