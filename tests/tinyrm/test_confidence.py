"""Test the three words for how sure a preference is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrm.confidence import CLEAR, INTERVAL, LEANING, MAX_LOG_STD, Confidence, Temperature
from tinyrm.readout import read_out

WORDS = ("close", "leaning", "clear")
finite = st.floats(-30, 30)


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


@pytest.mark.parametrize(
    ("probability", "word"),
    [
        (0.5, "close"),
        (LEANING - 1e-6, "close"),
        (LEANING, "leaning"),
        (CLEAR - 1e-6, "leaning"),
        (CLEAR + 1e-6, "clear"),
    ],
)
@pytest.mark.parametrize("value", [0.5, 3.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_temperature_that_is_known_exactly_leaves_the_probability(
    probability: float, word: Confidence, value: float, sign: int
) -> None:
    margin = sign * (log_odds(probability) + 1e-9) * value
    assert Temperature(value, log_std=0.0).confidence([margin]) == word


@pytest.mark.parametrize("log_std", [0.05, 0.2, MAX_LOG_STD])
@pytest.mark.parametrize(("limit", "below", "above"), [(LEANING, "close", "leaning"), (CLEAR, "leaning", "clear")])
def test_the_lower_end_of_the_interval_decides(
    log_std: float, limit: float, below: Confidence, above: Confidence
) -> None:
    edge = log_odds(limit) * math.exp(INTERVAL * log_std)
    assert Temperature(1.0, log_std).confidence([edge * 0.999]) == below
    assert Temperature(1.0, log_std).confidence([edge * 1.001]) == above


@given(finite)
def test_a_temperature_that_no_pairs_determined_is_as_uncertain_as_the_least_certain_fit(margin: float) -> None:
    assert Temperature().confidence([margin]) == Temperature(1.0, MAX_LOG_STD).confidence([margin])


def test_orders_that_disagree_are_close_however_large_the_margin_is() -> None:
    certain = Temperature(1.0, 0.0)
    assert certain.confidence([50.0, 50.0]) == "clear"
    assert certain.confidence([50.0, -0.001]) == "close"
    assert certain.confidence([-50.0, 0.001]) == "close"


def test_one_order_is_divided_by_its_own_temperature() -> None:
    temperature = Temperature(1.0, 0.0, one_order=4.0)
    assert temperature.confidence([2.0, 2.0]) == "clear"
    assert temperature.confidence([2.0]) == "leaning"
    assert Temperature(1.0, 0.0).confidence([2.0]) == "clear", "scores of single responses have no orders"


@given(st.lists(finite, min_size=1, max_size=2), st.floats(0.1, 10), st.floats(0, MAX_LOG_STD))
def test_the_word_does_not_depend_on_which_response_is_a(margins: list[float], value: float, log_std: float) -> None:
    temperature = Temperature(value, log_std)
    assert temperature.confidence(margins) == temperature.confidence([-margin for margin in reversed(margins)])


@given(finite, finite, st.floats(0, MAX_LOG_STD))
def test_a_larger_margin_is_never_less_sure(one: float, other: float, log_std: float) -> None:
    small, large = sorted((one, other), key=abs)
    words = [WORDS.index(Temperature(1.0, log_std).confidence([margin])) for margin in (small, large)]
    assert words == sorted(words)


def test_a_preference_is_rated_by_the_temperature_that_made_it() -> None:
    rows = [(2.0, 0.0), (0.0, 2.0)]
    assert read_out(rows, Temperature(1.0, 0.0)).confidence == "clear"
    assert read_out(rows, Temperature(1.0, MAX_LOG_STD)).confidence == "leaning"
    assert read_out(rows, 1.0).confidence == "leaning"
    assert read_out([(2.0, 0.0), (2.0, 0.0)], Temperature(0.1, 0.0)).confidence == "close", "a tie"
