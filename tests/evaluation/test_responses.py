"""Test targets that read responses alone: each distinct one is scored once, and figures are those of differences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.benchmarks import judgebench, pairs, rewardbench, rewardbench2, rm_bench
from evaluation.report import NO_ORDERS, Report
from evaluation.scoring import score_pairs
from evaluation.target import Target, local_scorer
from tests.conftest import TOY_SPEC
from tests.evaluation.known import alone, contrarian, length, length_alone, oracle, oracle_alone, target
from tests.support.scored_by_length import LengthEngine, response_scorer
from tinyrm.encoding import Encoder
from tinyrm.pairs import PreferencePair

BENCHMARKS = {module.NAME: module for module in (judgebench, rewardbench, rewardbench2, rm_bench)}
# Rows of tests/evaluation/conftest.py: pairs that are decided, and distinct (prompt, response) in them.
PAIRS_AND_RESPONSES = {
    "judge-bench": (5, 2 * 5),
    "reward-bench": (23 * 4 + 2, 2 * (23 * 4 + 2)),
    # Best of four: six pairs of four. Ties: six pairs of four and ten of five.
    "reward-bench-2": (10 * 6 + 3 * 6 + 3 * 10, 10 * 4 + 3 * 4 + 3 * 5),
    # Nine pairs of six.
    "rm-bench": (10 * 9, 10 * 6),
}


def run(name: str, request: pytest.FixtureRequest, judge: Target) -> Report:
    report: Report = BENCHMARKS[name].run(judge, str(request.getfixturevalue(name.replace("-", "_"))))
    return report


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_distinct_response_is_scored_once(name: str, request: pytest.FixtureRequest) -> None:
    judge = alone(length_alone)
    run(name, request, judge)
    decided, responses = PAIRS_AND_RESPONSES[name]
    assert (judge.meter.pairs, judge.meter.sequences) == (decided, responses)


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(("single", "pair"), [(length_alone, length), (oracle_alone, oracle)])
def test_differences_of_scores_decide_as_a_pairwise_model_of_the_same_margins(
    name: str, request: pytest.FixtureRequest, single: Callable[..., float], pair: Callable[..., float]
) -> None:
    """Compare with every pair in both orders, whose margins have no effect of the order."""
    found, expected = run(name, request, alone(single)), run(name, request, target(pair))
    assert without_orders(found.figures) == without_orders(expected.figures)
    assert [j.preference.margin for j in found.scored] == [j.preference.margin for j in expected.scored]


def without_orders(figures: dict[str, Any]) -> dict[str, Any]:
    """Leave out the margins of Ties, which depend on the scale of the scores, and what is said of orders."""
    figures = {name: value for name, value in figures.items() if name not in ("ties", "one_order")}
    figures["length"] = {name: {**part, "orders": None} for name, part in figures["length"].items()}
    return figures


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_report_says_nothing_of_orders_that_do_not_exist(name: str, request: pytest.FixtureRequest) -> None:
    report = run(name, request, alone(oracle_alone))
    assert NO_ORDERS in report.markdown
    for words in ("chosen first", "worth of standing first", "one order", "swap consistency |", "orders averaged"):
        assert words not in report.markdown
    everything = report.figures["length"]["all"]
    assert everything["orders"] == 1
    assert everything["position_margin"] == everything["position_size"] == 0
    assert everything["swap_consistency"]["value"] == everything["swap_consistency"]["low"] == 1
    assert everything["accuracy_one_order"] == everything["accuracy"]


def test_single_scores_are_the_scores_of_a_group_centred() -> None:
    """Use scores so far apart that a probability of winning is 1: a round robin would not tell them apart."""
    row = rewardbench2.RewardBench2Row(id="1", prompt="p", subset="Focus", chosen=("aa",), rejected=("b", "cccc"))
    (group,) = rewardbench2.compare_all(alone(lambda single: 100.0 * len(single.response)), [row])
    assert group.scores == pytest.approx(np.array([200, 100, 400]) - 700 / 3)


def test_a_response_under_another_instruction_is_another_one() -> None:
    judge = alone(lambda single: float(len(single.instruction)))
    spec = judge.spec.model_copy(update={"domains": {"general": "Best?", "safety": "Safer, please?"}})
    judge = Target(judge.identity, judge.engine, spec, judge.scorer, judge.meter)
    rows = [
        PreferencePair(prompt="p", chosen="a", rejected="b", domain=domain) for domain in ("safety", None, "safety")
    ]
    scored = score_pairs(judge, rows)
    assert judge.meter.sequences == 4
    assert [j.preference.preferred for j in scored] == ["tie"] * 3


def test_a_model_in_this_process_scores_the_texts_that_it_would_be_served(encoder: Encoder) -> None:
    engine = LengthEngine()
    scorer = response_scorer(encoder, TOY_SPEC, engine).at(2.0)
    judge = Target("local@1", "by-length", scorer.spec, local_scorer(scorer))
    rows = [PreferencePair(prompt="p", chosen="yes " * n, rejected="no", domain="safety") for n in (2, 3, 4)]
    scored = score_pairs(judge, rows)
    assert judge.reads == "response"
    assert len(engine.lengths) == 4
    direct = scorer.score([row.comparison() for row in rows], domain="safety")
    assert [j.preference for j in scored] == direct
    (group,) = rewardbench2.compare_all(
        judge,
        [
            rewardbench2.RewardBench2Row(
                id="1", prompt="p", subset="Focus", chosen=("yes " * 4,), rejected=("no", "b b")
            )
        ],
    )
    served = scorer.rank("p", ["yes " * 4, "no", "b b"]).strengths.values
    assert group.scores == pytest.approx(served.tolist())


def test_long_lists_of_responses_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.target.PART", 4)
    rows = [PreferencePair(prompt=f"p{n % 2}", chosen="a" * (n + 2), rejected="b") for n in range(6)]
    judge = alone(length_alone)
    assert [j.preference.margin for j in score_pairs(judge, rows)] == [1, 2, 3, 4, 5, 6]
    assert judge.meter.sequences == 6 + 2, "each prompt has one wrong response"


def test_another_temperature_divides_differences(tmp_path: Path) -> None:
    judge = alone(length_alone).at(4.0)
    (scored,) = score_pairs(judge, [PreferencePair(prompt="p", chosen="aaa", rejected="b")])
    assert scored.preference.margin == 0.5
    assert scored.preference.order_margins == (2.0,)


def test_the_cost_of_a_pair_is_that_of_the_responses_that_decide_it() -> None:
    judge = alone(length_alone)
    judge.meter.tokens, judge.meter.exact_flops, judge.meter.pairs, judge.meter.sequences = 400, 8e9, 6, 4
    cost = judge.cost
    assert cost.tokens_per_pair == pytest.approx(400 / 6)
    assert cost.gflops_per_pair == pytest.approx(8 / 6)
    assert cost.text_tokens == 200, "a pair's text is two sequences"


def test_pairs_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "p", "chosen": "good", "rejected": "bad", "domain": "chat"}\n' * 3)
    report = pairs.run(alone(oracle_alone), path)
    assert "| chat | 3 | 1 | 100.0% (100.0% to 100.0%) | 100.0% | +0.0 (+0.0 to +0.0) | 0.127 |" in report.markdown
    assert report.figures["domains"]["chat"]["orders"] == 1
    assert pairs.run(target(contrarian), path).figures["domains"]["chat"]["orders"] == 2
