"""Test that two models are compared on the same items, with paired intervals."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.__main__ import main
from evaluation.benchmarks import rewardbench
from evaluation.options import Options
from evaluation.paired import Paired
from evaluation.run import Evaluation
from evaluation.statistics import Difference, Estimate
from evaluation.target import Target
from tests.evaluation.known import alone, coin, length_alone, oracle_alone, target


def evaluated(judge: Target, data: Path) -> Evaluation:
    report = rewardbench.run(judge, str(data))
    return Evaluation(judge, report, judge.cost, report.figures, report.markdown)


def test_sections_differ_by_what_their_scores_differ(reward_bench: Path) -> None:
    paired = Paired(evaluated(target(coin), reward_bench), evaluated(alone(oracle_alone), reward_bench))
    assert list(paired.differences) == ["Chat", "Chat Hard", "Safety", "Reasoning", "score"]
    sections = paired.one.report.figures["sections"]
    for name, section in sections.items():
        assert paired.differences[name].value == pytest.approx(section["value"] - 1)
    assert paired.differences["score"].value == pytest.approx(paired.one.report.headline.value - 1)
    assert paired.differences["score"].low < paired.differences["score"].value < paired.differences["score"].high <= 0
    rows = paired.markdown.splitlines()
    assert any(row.startswith("| known@1 | pair | ") for row in rows)
    assert any(row.startswith("| known-alone@1 | response | 100.0% | no order | 100.0% | 188 |") for row in rows)


def test_a_model_and_itself_differ_by_nothing_in_every_sample(reward_bench: Path) -> None:
    paired = Paired(evaluated(alone(length_alone), reward_bench), evaluated(alone(length_alone), reward_bench))
    assert set(paired.differences.values()) == {Difference(value=0, low=0, high=0)}


def test_a_paired_interval_is_narrower_than_those_of_two_scores_that_move_together() -> None:
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(400)]
    one = (rng.random(400) < 0.6).astype(float)
    other = np.where(rng.random(400) < 0.05, 1 - one, one)  # differs on one item in twenty
    paired = Difference.between(Estimate.of(one.tolist(), groups), Estimate.of(other.tolist(), groups))
    apart = Difference.between(Estimate.of(one.tolist(), groups), Estimate.of(other.tolist(), groups, seed=1))
    assert paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < (apart.high - apart.low) / 2
    expected = 2 * 1.96 * np.std(one - other) / 20
    assert paired.high - paired.low == pytest.approx(expected, rel=0.15)


def test_the_other_model_is_a_bundle_a_checkpoint_or_a_service(bundle_folder: Path, tmp_path: Path) -> None:
    options = Options(bundle=Path("one"), pairs=Path("pairs"), engine="openvino-cpu", against=str(bundle_folder))
    other = options.of_other()
    assert (other.bundle, other.engine, other.against, other.pairs) == (
        bundle_folder,
        "openvino-cpu",
        None,
        Path("pairs"),
    )
    trained = Options(bundle=Path("one"), engine="openvino-cpu", against=str(tmp_path)).of_other()
    assert (trained.bundle, trained.checkpoint, trained.engine) == (None, tmp_path, "auto")
    served = Options(checkpoint=Path("one"), against="http://127.0.0.1:8000").of_other()
    assert (served.checkpoint, served.service) == (None, "http://127.0.0.1:8000")


def test_the_command_compares_two_models(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    bundle_folder: Path,
    judge_bench: Path,
) -> None:
    out = tmp_path / "out"
    models = ["--bundle", str(bundle_folder), "--against", str(bundle_folder)]
    assert main(["judge-bench", *models, "--data", str(judge_bench), "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((out / "results.json").read_text())
    assert printed["against"]["model"] == printed["model"]
    assert printed["differences"]["**all pairs**"] == {"value": 0, "low": 0, "high": 0}
    assert "difference in points" in (out / "report.md").read_text()
