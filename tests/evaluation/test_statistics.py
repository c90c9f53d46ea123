"""Test accuracy, consistency, intervals and calibration on results made by hand."""

import math

import numpy as np
import pytest

from evaluation.scoring import ScoredPair
from evaluation.statistics import Difference, Share, by_domain, calibration_error, summarise
from tinyrm.comparison import Preference
from tinyrm.pairs import PreferencePair


def judged(
    margins: tuple[float, float], *, prompt: str = "p", chosen: str = "longer", domain: str = "chat"
) -> ScoredPair:
    margin = sum(margins) / 2
    p_a = 1 / (1 + math.exp(-margin))
    pair = PreferencePair(prompt=prompt, chosen=chosen, rejected="abc", domain=domain)
    return ScoredPair(pair, Preference(p_a, 1 - p_a, margin, margins))


def test_both_orders_decide_accuracy_and_each_order_counts_alone() -> None:
    summary = summarise([judged((3, -1)), judged((-3, 1)), judged((1, 1)), judged((1, 2))])
    assert summary.accuracy.value == 0.75
    assert summary.swap_consistency.value == 0.5
    assert summary.accuracy_one_order.value == 0.75


def test_a_tie_is_half_right() -> None:
    assert summarise([judged((1, -1))]).accuracy.value == 0.5


def test_the_length_heuristic_uses_the_better_direction_in_each_domain() -> None:
    records = [judged((1, 1)), judged((1, 1)), judged((1, 1), chosen="ab", domain="safety")]
    summaries = by_domain(records)
    assert summaries["chat"].length_heuristic == summaries["safety"].length_heuristic == 1
    assert summaries["all"].length_heuristic == 1
    assert list(summaries) == ["all", "chat", "safety"]


def test_what_a_model_adds_to_the_length_heuristic_is_drawn_together_with_it() -> None:
    shorter = [i % 3 == 0 for i in range(120)]
    follows = [
        judged((-1, -1) if wrong else (1, 1), prompt=str(i), chosen="ab" if wrong else "longer")
        for i, wrong in enumerate(shorter)
    ]
    assert summarise(follows).over_length_heuristic == Difference(value=0, low=0, high=0)
    right = [judged((1, 1), prompt=j.pair.prompt, chosen=j.pair.chosen) for j in follows]
    over = summarise(right).over_length_heuristic
    assert over.value == pytest.approx(1 / 3)
    assert 0.2 < over.low < over.value < over.high < 0.5


def test_an_interval_covers_the_truth_about_as_often_as_its_level() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        draws = (rng.random(400) < 0.7).astype(float)
        share = Share.of(draws.tolist(), [str(i) for i in range(400)], seed=trial)
        covered += share.low <= 0.7 <= share.high
    assert 88 <= covered <= 100


def test_pairs_of_one_prompt_widen_the_interval() -> None:
    values = [1.0] * 50 + [0.0] * 50
    independent = Share.of(values, [str(i) for i in range(100)])
    repeated = Share.of(values, [str(i // 10) for i in range(100)])
    assert repeated.high - repeated.low > 2 * (independent.high - independent.low)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    right_seven_times_in_ten = np.array([0.9] * 7 + [0.1] * 3)
    assert calibration_error(right_seven_times_in_ten) == pytest.approx(0.2)
    assert calibration_error(np.array([0.9] * 9 + [0.1])) == pytest.approx(0.0)


def test_likelihood_and_brier_are_of_the_right_answer() -> None:
    summary = summarise([judged((0, 0)), judged((math.log(3), math.log(3)))])
    assert summary.negative_log_likelihood == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)
    assert summary.brier == pytest.approx((0.25 + 0.0625) / 2)
