"""Test RewardBench: the official weights, the paper's weights, and scorers with known scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.benchmarks.rewardbench import official_sections, paper_chat, run
from evaluation.statistics import RESAMPLES, Estimate, mean
from tests.evaluation.conftest import reward_bench_row
from tests.evaluation.known import coin, contrarian, first_is_better, length, oracle, target, torn
from tinyrm.errors import InvalidInput

MADE = {
    "alpacaeval-easy": 0.9,
    "alpacaeval-length": 0.8,
    "alpacaeval-hard": 0.7,
    "mt-bench-easy": 1.0,
    "mt-bench-med": 0.5,
    "mt-bench-hard": 0.5,
    "llmbar-natural": 0.6,
    "llmbar-adver-neighbor": 0.2,
    "llmbar-adver-GPTInst": 0.1,
    "llmbar-adver-GPTOut": 0.4,
    "llmbar-adver-manual": 0.3,
    "refusals-dangerous": 0.5,
    "refusals-offensive": 0.5,
    "xstest-should-refuse": 1.0,
    "xstest-should-respond": 0.5,
    "donotanswer": 0.5,
    "math-prm": 0.5,
    "hep-cpp": 0.8,
    "hep-go": 0.8,
    "hep-java": 0.8,
    "hep-js": 0.8,
    "hep-python": 0.8,
    "hep-rust": 0.8,
}


def estimate(value: float) -> Estimate:
    return Estimate(value, np.full(RESAMPLES, value))


def test_official_aggregation_of_a_made_table() -> None:
    sections = official_sections({name: estimate(value) for name, value in MADE.items()})
    assert sections["Chat"].value == pytest.approx((90 + 76 + 66.5 + 28 + 20) / 358)
    assert sections["Chat Hard"].value == pytest.approx((18.5 + 60 + 26.8 + 9.2 + 18.8 + 13.8) / 456)
    assert sections["Safety"].value == pytest.approx((50 + 50 + 250 + 77 + 68) / 740)
    assert sections["Reasoning"].value == pytest.approx(0.65)  # math-prm weighs as much as all code
    assert mean(sections).value == pytest.approx(sum(s.value for s in sections.values()) / 4)


def test_the_papers_chat_is_that_of_its_published_parts() -> None:
    chat = paper_chat({"Chat": estimate(0.866), "Chat Hard": estimate(0.369)})
    assert round(100 * chat.value, 1) == 78.8
    assert round(100 * paper_chat({"Chat": estimate(0.7946), "Chat Hard": estimate(0.2522)}).value, 1) == 70.9


def test_an_oracle_gets_everything_and_its_opposite_nothing(reward_bench: Path) -> None:
    best, worst = run(target(oracle), str(reward_bench)), run(target(contrarian), str(reward_bench))
    assert best.headline.value == best.headline.low == 1
    assert {share["value"] for share in best.figures["sections"].values()} == {1}
    assert {share["value"] for share in best.figures["paper"].values()} == {1}
    assert list(best.figures["paper"]) == ["Chat", "Reasoning", "Safety", "mean of 3"]
    assert worst.headline.value == worst.headline.high == 0
    assert worst.figures["length"]["all"]["swap_consistency"]["value"] == 1


def test_length_is_right_where_the_right_response_is_longer(reward_bench: Path) -> None:
    report = run(target(length), str(reward_bench))
    assert report.headline.value == pytest.approx(0.25)
    assert report.figures["length"]["chosen longer"]["accuracy"]["value"] == 1
    assert report.figures["length"]["chosen shorter"]["accuracy"]["value"] == 0
    # `raw` has two more rows that are right by length in one Chat subset: (5 + 2) of 22 and 6 of 24.
    assert report.figures["paper"]["Chat"]["value"] == pytest.approx(0.843 * 7 / 22 + 0.157 * 6 / 24)


def test_a_scorer_that_always_prefers_the_first_decides_nothing(reward_bench: Path) -> None:
    report = run(target(first_is_better), str(reward_bench))
    every = report.figures["length"]["all"]
    assert report.headline.value == 0  # a tie is wrong, as officially
    assert every["accuracy"]["value"] == every["accuracy_one_order"]["value"] == 0.5
    assert (every["accuracy_chosen_first"], every["accuracy_chosen_second"]) == (1, 0)
    assert every["position_margin"] == every["position_size"] == 3
    assert every["swap_consistency"]["value"] == 0


def test_a_random_scorer_gets_the_share_of_its_throws(reward_bench: Path) -> None:
    report = run(target(coin), str(reward_bench))
    for name, share in report.figures["subsets"].items():
        throws = [
            coin(c) - coin(c.swapped()) for j in report.scored if j.pair.subset == name for c in [j.pair.comparison()]
        ]
        assert share["value"] == sum(throw > 0 for throw in throws) / 4
    assert report.headline.low < report.headline.value < report.headline.high


def test_without_the_raw_split_the_papers_chat_is_reported_as_missing(reward_bench: Path) -> None:
    report = run(target(oracle), str(reward_bench / "data" / "filtered-00000-of-00001.parquet"))
    assert report.headline.value == 1
    assert list(report.figures["paper"]) == ["Reasoning", "Safety"]
    assert "needs the `raw` split" in report.markdown


def test_pairs_in_both_splits_are_read_once(reward_bench: Path) -> None:
    judge = target(oracle)
    run(judge, str(reward_bench))
    assert judge.meter.pairs == 23 * 4 + 2


def test_every_subset_has_its_row(reward_bench: Path) -> None:
    markdown = run(target(oracle), str(reward_bench)).markdown
    assert all(f"| {name} |" in markdown for name in MADE)
    assert "**score: mean of 4**" in markdown


def test_one_order_and_a_part_of_the_benchmark_are_labelled_as_such(reward_bench: Path, tmp_path: Path) -> None:
    report = run(target(torn), str(reward_bench))
    assert report.headline.value == 1
    assert report.figures["one_order"]["score"] == 0.5, "right only if the right response is first"
    assert report.figures["missing_subsets"] == []
    rows = [reward_bench_row(n, "hep-cpp", "good", "bad") for n in range(3)]
    (tmp_path / "part.json").write_text(json.dumps(rows))
    part = run(target(oracle), str(tmp_path / "part.json"))
    assert len(part.figures["missing_subsets"]) == 22
    assert part.markdown.startswith("Not the whole benchmark: no rows of alpacaeval-easy, ")
    (tmp_path / "typo.json").write_text(json.dumps([rows[0] | {"subset": "hep-c++"}]))
    with pytest.raises(InvalidInput, match=r"row 0: subset: .*no subset 'hep-c\+\+'"):
        run(target(oracle), str(tmp_path / "typo.json"))
