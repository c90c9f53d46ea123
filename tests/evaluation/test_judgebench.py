"""Test JudgeBench: its convention for orders that disagree, and ours."""

from pathlib import Path

import pytest

from evaluation.benchmarks.judgebench import run
from tests.evaluation.known import contrarian, first_is_better, oracle, target, torn


def test_known_scorers(judge_bench: Path) -> None:
    assert run(target(oracle), str(judge_bench)).headline.value == 1
    assert run(target(contrarian), str(judge_bench)).headline.value == 0
    assert run(target(first_is_better), str(judge_bench)).headline.value == 0


def test_inconsistent_verdicts_are_wrong_by_the_benchmark_and_decided_by_the_mean(judge_bench: Path) -> None:
    """Use +2 with the right response first and -1 with it second: inconsistent, and right on average."""
    report = run(target(torn), str(judge_bench))
    assert report.headline.value == 0
    assert report.figures["averaged"]["value"] == 1
    assert report.figures["length"]["all"]["swap_consistency"]["value"] == 0


def test_categories_and_mean_over_pairs(judge_bench: Path) -> None:
    report = run(
        target(lambda c: oracle(c) * (1 if c.prompt in ("question 0", "question 1") else -1)), str(judge_bench)
    )
    scores = {name: category["score"]["value"] for name, category in report.figures["categories"].items()}
    assert scores == {"knowledge": 1, "reasoning": 0, "math": 0, "coding": 0}
    assert report.headline.value == pytest.approx(2 / 5)
