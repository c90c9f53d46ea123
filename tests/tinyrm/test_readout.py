"""Test that two label logits become a probability, and that both orders together have no position bias."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrm.confidence import Temperature
from tinyrm.errors import EngineFailed
from tinyrm.ranking import sigmoid
from tinyrm.readout import read_out, recalibrate

logit = st.floats(-200, 200, width=32)
row = st.tuples(logit, logit)
temperatures = st.floats(0.05, 20)


@given(row, temperatures)
def test_one_order_is_the_scaled_difference_of_the_labels(labels: tuple[float, float], temperature: float) -> None:
    preference = read_out([labels], temperature)
    assert preference.order_margins == (labels[0] - labels[1],)
    assert preference.margin == pytest.approx((labels[0] - labels[1]) / temperature)


@given(row, row, temperatures)
def test_both_orders_average_the_margin_of_response_a(
    forward: tuple[float, float], backward: tuple[float, float], temperature: float
) -> None:
    preference = read_out([forward, backward], temperature)
    first, second = forward[0] - forward[1], backward[1] - backward[0]
    assert preference.order_margins == (first, second)
    assert preference.margin == pytest.approx((first + second) / (2 * temperature))


@given(row, row, temperatures)
def test_swapping_the_responses_swaps_the_probabilities(
    forward: tuple[float, float], backward: tuple[float, float], temperature: float
) -> None:
    ab = read_out([forward, backward], temperature)
    ba = read_out([backward, forward], temperature)
    assert ba.margin == -ab.margin
    assert (ba.p_a, ba.p_b) == (ab.p_b, ab.p_a)
    assert ab.p_a + ba.p_a == pytest.approx(1, abs=1e-15)


@given(st.lists(row, min_size=1, max_size=2), temperatures)
def test_probabilities_are_complementary_and_agree_with_the_verdict(
    rows: list[tuple[float, float]], temperature: float
) -> None:
    preference = read_out(rows, temperature)
    assert preference.p_a + preference.p_b == pytest.approx(1, abs=1e-15)
    assert preference.p_a == pytest.approx(sigmoid(preference.margin))
    if preference.preferred != "tie" and abs(preference.margin) > 1e-12:
        assert (preference.p_a > preference.p_b) == (preference.preferred == "a")


@given(st.lists(row, min_size=1, max_size=2), temperatures, temperatures)
def test_a_preference_at_another_temperature_is_that_of_the_same_logits(
    rows: list[tuple[float, float]], before: float, after: float
) -> None:
    assert recalibrate(read_out(rows, before), Temperature(after)) == read_out(rows, after)


def test_a_bias_for_the_first_position_cancels() -> None:
    biased = read_out([(3.0, 0.0), (3.0, 0.0)], 1.0)
    assert biased.preferred == "tie"
    assert biased.orders_disagree


def test_known_value() -> None:
    preference = read_out([(2.0, 0.0), (0.0, 1.0)], temperature=0.5)
    assert preference.margin == 3.0
    assert preference.p_a == pytest.approx(0.9525741268)


def test_a_higher_temperature_gives_smaller_margins() -> None:
    assert 0.5 < read_out([(2.0, 0.0)], 4.0).p_a < read_out([(2.0, 0.0)], 1.0).p_a


def test_one_order_is_divided_by_its_own_temperature_and_both_by_theirs() -> None:
    """In bundles that were written before, one temperature divides both."""
    own = Temperature(2.0, one_order=4.0, divides_one_order=True)
    assert read_out([(3.0, 0.0)], own).margin == 0.75
    assert recalibrate(read_out([(3.0, 0.0)], 1.0), own).margin == 0.75
    assert read_out([(3.0, 0.0), (0.0, 1.0)], own).margin == 1.0
    assert read_out([(3.0, 0.0)], Temperature(2.0, one_order=4.0)).margin == 1.5
    assert read_out([(3.0, 0.0)], Temperature(2.0, divides_one_order=True)).margin == 1.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_logit_that_is_not_finite_is_the_engines_failure(bad: float, position: tuple[int, int]) -> None:
    logits = np.zeros((2, 2), dtype=np.float32)
    logits[position] = bad
    with pytest.raises(EngineFailed, match="finite"):
        read_out(logits, 1.0)


@pytest.mark.parametrize("shape", [(0, 2), (3, 2), (1, 3), (1, 1), (2,), (1, 1, 2)])
def test_logits_of_another_shape_are_the_engines_failure(shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineFailed):
        read_out(np.zeros(shape, dtype=np.float32), 1.0)


@given(st.floats(allow_nan=False))
def test_sigmoid_never_overflows_and_stays_a_probability(x: float) -> None:
    assert 0 <= sigmoid(x) <= 1
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1, abs=1e-15)


def test_sigmoid_keeps_small_probabilities() -> None:
    assert sigmoid(-700) == pytest.approx(math.exp(-700), rel=1e-12)
