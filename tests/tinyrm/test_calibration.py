"""Test the temperature: a known one is found, and pairs that determine none are refused."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyrm.calibration import determine_domains, determine_temperature, fit_temperature, is_bounded, raw_margins
from tinyrm.comparison import Preference
from tinyrm.errors import InvalidInput
from tinyrm.ranking import sigmoid
from tinyrm.verdicts import Label


def simulated(overconfidence: float, count: int = 40_000) -> NDArray[np.float64]:
    """Return margins for the better response that are `overconfidence` times too large."""
    rng = np.random.default_rng(0)
    honest = rng.normal(scale=2.0, size=count)
    right = rng.random(count) < 1 / (1 + np.exp(-honest))
    return overconfidence * np.where(right, honest, -honest)


def judged(margins: NDArray[np.float64]) -> list[Preference]:
    """Return preferences with a position bias of 1."""
    return [Preference(0.5, 0.5, margin, (margin + 1, margin - 1)) for margin in margins]


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


@pytest.mark.parametrize(
    ("margins", "reason"),
    [
        (np.full(0, 0.5), "no temperature fits these 0 pairs: at least 50 are needed"),
        (np.full(4, 0.5), "these 4 pairs: at least 50 are needed"),
        (np.linspace(-1, 9, 49), "these 49 pairs: at least 50 are needed"),
        (np.full(50, 0.5), "these 50 pairs: the likelihood grows up to 0.018"),
        (np.full(50, -0.5), "no better than chance"),
        (np.array([*np.linspace(0.01, 1, 31), *np.linspace(-1, -0.01, 29)]), "is uncertain by a factor of"),
        (np.array([*[1.0] * 60, *[-1.0] * 4]), "only 4 of them are judged wrongly"),
    ],
)
def test_pairs_that_determine_no_temperature_are_refused(margins: NDArray[np.float64], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        determine_temperature(judged(margins))


def probable(margins: NDArray[np.float64], temperature: float) -> list[Label]:
    """Return the probabilities that margins have at a temperature."""
    return [Label(probability=float(sigmoid(margin / temperature))) for margin in margins]


def test_probabilities_determine_the_temperature_exactly_and_with_few_pairs() -> None:
    margins = np.random.default_rng(0).normal(1, 3, 60)
    fit = determine_temperature(judged(margins), probable(margins, 2.0))
    assert fit.temperature == pytest.approx(2.0, rel=1e-4)
    agreed = np.abs(margins)  # the model is never wrong, and no more sure than it may be
    fit = determine_temperature(judged(agreed), probable(agreed, 2.0))
    assert fit.temperature == pytest.approx(2.0, rel=1e-4)
    assert fit.wrong == round(float(np.sum(1 - sigmoid(agreed / 2))))
    with pytest.raises(InvalidInput, match="the likelihood grows"):
        determine_temperature(judged(agreed))


def test_verdicts_as_labels_change_nothing() -> None:
    margins = simulated(3.0, 400)
    assert determine_temperature(judged(margins), [Label()] * 400) == determine_temperature(judged(margins))
    ties = [Label(probability=0.5)] * 400
    with pytest.raises(InvalidInput, match="no better than chance"):
        determine_temperature(judged(margins), ties)


def test_a_weight_counts_as_repetitions() -> None:
    margins = simulated(3.0, 200)
    weights = [1.0 + 2 * (i % 2) for i in range(200)]
    weighted = determine_temperature(judged(margins), [Label(weight=weight) for weight in weights])
    repeated = determine_temperature(judged(np.repeat(margins, [int(weight) for weight in weights])))
    assert weighted.temperature == pytest.approx(repeated.temperature, rel=1e-4)
    assert weighted.pairs == 200


def test_domains_are_tested_on_their_own_probabilities() -> None:
    margins = np.random.default_rng(0).normal(1, 3, 400)
    labels = probable(margins[:200], 1.0) + probable(margins[200:], 3.0)
    names = ["chat"] * 200 + ["code"] * 200
    general = determine_temperature(judged(margins), labels).temperature
    fits = determine_domains(judged(margins), names, general, labels)
    found = {name: fit.temperature for name, fit in fits.items()}
    assert found == {"chat": pytest.approx(1.0, rel=1e-3), "code": pytest.approx(3.0, rel=1e-3)}


def test_a_temperature_that_pairs_determine_has_a_standard_error() -> None:
    """Compare the error that one fit reports with the spread of many fits."""
    fits = [determine_temperature(judged(part)) for part in np.split(simulated(3.0, 40_000), 200)]
    spread = np.std(np.log([fit.temperature for fit in fits]))
    assert np.mean([fit.log_std for fit in fits]) == pytest.approx(spread, rel=0.2)
    assert all(fit.one_order > fit.temperature for fit in fits), "a position bias is noise in one order alone"
    assert (fits[0].pairs, fits[0].wrong) == (200, int(np.sum(simulated(3.0, 40_000)[:200] <= 0)))


def test_raw_margins_are_means_over_orders_before_calibration() -> None:
    preferences = [Preference(0.5, 0.5, 0.1, (3.0, -1.0)), Preference(0.5, 0.5, 0.2, (2.0,))]
    assert raw_margins(preferences).tolist() == [1.0, 2.0]


def by_domain(**margins: NDArray[np.float64]) -> dict[str, float]:
    """Return the own temperatures of domains beside a general one of 1."""
    names = [name for name, part in margins.items() for _ in part]
    fits = determine_domains(judged(np.concatenate([*margins.values()])), names, 1.0)
    return {name: fit.temperature for name, fit in fits.items()}


def test_a_domain_with_another_temperature_has_its_own() -> None:
    own = by_domain(code=simulated(3.0, 2000), chat=simulated(1.0, 2000))
    assert own == {"code": pytest.approx(3.0, rel=0.15), "chat": pytest.approx(1.0, rel=0.15)}


def test_domains_that_need_none_share_what_fits_without_those_that_do() -> None:
    parts = dict(zip(("chat", "safety"), np.split(simulated(1.0, 2000), 2), strict=True))
    code = simulated(3.0, 300)
    general = fit_temperature(np.concatenate([code, *parts.values()]))
    margins, names = [*code, *parts["chat"], *parts["safety"]], [*["code"] * 300, *["chat"] * 1000, *["safety"] * 1000]
    fits = determine_domains(judged(np.array(margins)), names, general)
    assert fits["chat"] == fits["safety"]
    assert fits["chat"].temperature == pytest.approx(fit_temperature(np.concatenate([*parts.values()])))
    assert fits["chat"].temperature < general < fits["code"].temperature


def test_a_difference_that_chance_explains_gives_no_own_temperature() -> None:
    """Draw forty domains at the general temperature: a test at 5 % rejects two of them on average."""
    parts = {f"d{i}": part for i, part in enumerate(np.split(simulated(1.0, 8000), 40))}
    assert len(set(by_domain(**parts).values())) <= 7, "and the others have one together"


@pytest.mark.parametrize(
    ("margins", "own", "warning"),
    [
        (np.array([*[8.0] * 45, *[-8.0] * 5]), True, ""),
        (np.array([*[8.0] * 44, *[-8.0] * 5]), False, "at least 50 are needed"),
        (np.array([*[8.0] * 46, *[-8.0] * 4]), False, "only 4 of them are judged wrongly"),
    ],
)
def test_a_domain_needs_fifty_pairs_and_five_errors(
    margins: NDArray[np.float64], own: bool, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert bool(by_domain(small=margins, large=simulated(1.0, 2000))) is own
    assert [warning in record.message and "domain small" in record.message for record in caplog.records] == (
        [] if own else [True]
    )
