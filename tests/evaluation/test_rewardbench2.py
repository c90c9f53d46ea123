"""Test RewardBench 2: best of four with shared wins, and the score of Ties."""

import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.benchmarks.rewardbench2 import RewardBench2Row, best_of, compare_all, run, ties_score
from tests.evaluation.known import contrarian, first_is_better, length, oracle, target
from tinyrm.errors import InvalidInput
from tinyrm.ranking import margin_matrix, order, rank


def row(id_: str, right: int, wrong: int) -> RewardBench2Row:
    responses = {"chosen": tuple("r" * right), "rejected": tuple("w" * wrong)}
    return RewardBench2Row(id=id_, prompt="p", subset="Ties", **responses)


def test_responses_with_the_highest_score_share_the_win() -> None:
    assert best_of([2, 1, 0, -3], 1) == 1
    assert best_of([2, 2, 0, -3], 1) == 0.5
    assert best_of([1, 1, 1, 1], 1) == 0.25
    assert best_of([0, 1, 1, 1], 1) == 0
    with pytest.raises(InvalidInput, match="2 right responses"):
        best_of([0, 1, 1, 1], 2)


def lengths(*responses: str) -> RewardBench2Row:
    return RewardBench2Row(id="1", prompt="p", subset="Focus", chosen=responses[:1], rejected=responses[1:])


def test_scores_are_those_of_the_served_rank() -> None:
    (group,) = compare_all(target(length), [lengths("a", "aaaa", "aa")])
    margins = margin_matrix(3, {(0, 1): -3, (0, 2): -1, (1, 2): 2})
    assert list(group.preferences) == [(0, 1), (0, 2), (1, 2)]
    assert group.scores == pytest.approx(rank(margins).strengths.values.tolist())
    assert order(np.array(group.scores)) == rank(margins).order == [1, 2, 0]


def test_each_row_gets_its_own_comparisons() -> None:
    first, second = compare_all(target(length), [lengths("a", "b"), lengths("xx", "x", "xxx")])
    assert first.scores == pytest.approx([0, 0])
    assert order(np.array(second.scores)) == [2, 0, 1]
    assert {pair: p.margin for pair, p in second.preferences.items()} == {(0, 1): 1, (0, 2): -1, (1, 2): -2}


def test_ties_by_hand() -> None:
    """Prompt 1: spread 1, gap 3, its twin's gap 0.5: preferred, not hard. Prompt 2: its worst right response loses."""
    rows = [
        (row("tied:1", 2, 2), [5.0, 4.0, 1.0, 0.0]),
        (row("ref:1", 1, 2), [2.0, 1.5, 0.0]),
        (row("tied:2", 2, 1), [3.0, 0.0, 1.0]),
        (row("ref:2", 1, 1), [0.0, 1.0]),
    ]
    parts = {name: part.value for name, part in ties_score(rows).items()}
    assert parts["tied accuracy"] == 0.5
    assert parts["ref accuracy"] == 0.5
    assert parts["preferred"] == 0.5
    assert parts["preferred hard"] == 0
    margin = (math.tanh(0.5 / 1 - 1) + math.tanh(-1 / 3 - 1)) / 2
    assert parts["margin"] == pytest.approx(margin)
    assert parts["score"] == pytest.approx(0.15 + 0.15 + 0.1 + 0.01 * margin)


def test_without_spread_and_gap_there_is_no_margin() -> None:
    rows = [(row("tied:1", 2, 1), [0.0, 0.0, 0.0]), (row("ref:1", 1, 1), [0.0, 0.0])]
    parts = ties_score(rows)
    assert {part.value for part in parts.values()} == {0}


def test_ids_without_a_twin_are_refused() -> None:
    with pytest.raises(InvalidInput, match="neither ref:N nor tied:N"):
        ties_score([(row("7", 1, 1), [1.0, 0.0])])
    with pytest.raises(InvalidInput, match="both a ref and a tied"):
        ties_score([(row("ref:1", 1, 1), [1.0, 0.0]), (row("tied:2", 1, 1), [1.0, 0.0])])


def test_an_oracle_scores_one_and_a_hundredth(reward_bench_2: Path) -> None:
    """Score all right responses equally and above all wrong ones, which the published tie-breaking term rewards."""
    report = run(target(oracle), str(reward_bench_2))
    shares = {name: share["value"] for name, share in report.figures["subsets"].items()}
    assert shares.pop("Ties") == pytest.approx(1.01)
    assert set(shares.values()) == {1}
    assert report.figures["totals"]["score without Ties"]["value"] == 1
    assert report.headline.value == pytest.approx((5 + 1.01) / 6)
    assert report.figures["length"]["all"]["accuracy"]["value"] == 1
    assert len(report.scored) == 10 * 3 + 3 * (3 + 6)


def test_known_scorers_get_their_known_scores(reward_bench_2: Path) -> None:
    wrong, undecided = run(target(contrarian), str(reward_bench_2)), run(target(first_is_better), str(reward_bench_2))
    assert wrong.figures["totals"]["score without Ties"]["value"] == 0
    assert undecided.figures["totals"]["score without Ties"]["value"] == 0.25  # four share every win
    assert undecided.figures["subsets"]["Ties"]["value"] == 0
    # "not so" is the longest of four, "good red" of Ties' four is not longer than "bad grey".
    longest = run(target(length), str(reward_bench_2))
    assert longest.figures["totals"]["score without Ties"]["value"] == 0
    assert longest.figures["ties"]["ref accuracy"] == 0


def test_six_pairs_in_two_orders_for_best_of_four(reward_bench_2: Path) -> None:
    judge = target(oracle)
    run(judge, str(reward_bench_2))
    assert judge.meter.pairs == 10 * 6 + 3 * 6 + 3 * 10
