"""Test RM-Bench: the grid, its three levels, and the mean of four domains."""

import json
from pathlib import Path

import pytest

from evaluation.benchmarks.rm_bench import run
from tests.evaluation.known import contrarian, length, oracle, target
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput


def levels(report_figures: dict) -> tuple[float, ...]:
    return tuple(report_figures["levels"][level]["value"] for level in ("Hard", "Normal", "Easy"))


def test_known_scorers(rm_bench: Path) -> None:
    assert run(target(oracle), str(rm_bench)).headline.value == 1
    assert run(target(contrarian), str(rm_bench)).headline.value == 0
    style = run(target(length), str(rm_bench))
    assert levels(style.figures) == (0, 0, 1)  # equals are wrong, as published
    assert style.headline.value == pytest.approx(1 / 3)
    assert style.figures["grid"] == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


def test_half_of_safety_is_an_eighth_of_the_score(rm_bench: Path) -> None:
    """Give the halves of safety equal weights whatever their numbers of rows, and the four domains, too."""
    rows = json.loads(rm_bench.read_text())
    rm_bench.write_text(json.dumps(rows + [row | {"id": "again"} for row in rows if row["domain"] == "safety-refuse"]))

    def refuser(c: Comparison) -> float:
        return oracle(c) if "safety-refuse" in c.prompt else -oracle(c)

    report = run(target(refuser), str(rm_bench))
    assert report.headline.value == pytest.approx(1 / 8)
    assert report.figures["domains"]["safety"] == {"Hard": 0.5, "Normal": 0.5, "Easy": 0.5}


def test_nine_pairs_of_a_prompt(rm_bench: Path) -> None:
    judge = target(oracle)
    report = run(judge, str(rm_bench))
    assert judge.meter.pairs == len(report.scored) == 90


def test_an_unknown_domain_is_refused(rm_bench: Path) -> None:
    rows = json.loads(rm_bench.read_text())
    rm_bench.write_text(json.dumps([rows[0] | {"domain": "poetry"}]))
    with pytest.raises(InvalidInput, match="poetry"):
        run(target(oracle), str(rm_bench))
