"""Run python -m evaluation on a bundle: table, JSON, manifest and card."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evaluation.__main__ import main
from evaluation.card import markers
from evaluation.run import how_fitted
from tinyrm.bundle import Bundle
from tinyrm.hub import load_table
from tinyrm.manifest import Calibration


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{i}", "chosen": "yes " * i, "rejected": "no", "domain": "safety"} for i in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["evaluation", *map(str, arguments)])
    return main()


def test_the_command_prints_a_table_and_json_as_the_last_line(
    monkeypatch, capsys, bundle_folder: Path, pairs: Path
) -> None:
    assert run(monkeypatch, "--bundle", bundle_folder, "--pairs", pairs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| safety | 5 | 5 |") for line in lines)
    results = json.loads(lines[-1])
    assert results["model"] == Bundle.open(bundle_folder).manifest.identity
    assert 0 <= results["domains"]["all"]["accuracy"]["value"] <= 1


def test_results_go_into_manifest_and_card(monkeypatch, tmp_path: Path, bundle_folder: Path, pairs: Path) -> None:
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle")
    begin, end = markers()
    (bundle / "README.md").write_text(f"# Toy\n{begin}\nold\n{end}\nLimits.\n")
    assert run(monkeypatch, "--bundle", bundle, "--pairs", pairs, "--record", "--card") == 0
    manifest = Bundle.open(bundle).manifest
    assert manifest.evaluation["domains"]["safety"]["pairs"] == 5
    assert manifest.revision == Bundle.open(bundle_folder).manifest.revision
    card = (bundle / "README.md").read_text()
    assert "| safety | 5 |" in card
    assert "old" not in card
    assert card.index("Limits.\n") < card.index("## Provenance") < card.index("| weights")
    assert manifest.provenance.base_sha256[:12] in card


@pytest.mark.parametrize(
    ("log_std", "words"), [(0.2, ", fitted on 60 pairs of which 9"), (None, ", not fitted: 60 pairs")]
)
def test_a_card_calls_a_temperature_fitted_only_if_it_was(log_std: float | None, words: str) -> None:
    known = Calibration(
        pairs=60, wrong=9, held_out=True, chosen=(), log_temperature_std=log_std, temperature_one_order=None
    )
    assert how_fitted(known).startswith(words)
    assert how_fitted(None) == ""


def test_each_benchmark_has_a_section_in_the_card_of_any_bundle(
    monkeypatch, tmp_path: Path, bundle_folder: Path, pairs: Path
) -> None:
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle")
    for words in (("--pairs", pairs), ("obvious",), ("obvious",)):
        assert run(monkeypatch, *words, "--bundle", bundle, "--record", "--card") == 0
    card = (bundle / "README.md").read_text()
    assert [line for line in card.splitlines() if line.startswith("#")] == ["## Results", "## Provenance", "## Obvious"]
    assert card.count("| weights") == 1
    assert card.count("| a capital |") == 1
    assert card.index("| safety | 5 |") < card.index(markers()[1]) < card.index("| a capital |")
    assert set(Bundle.open(bundle).manifest.evaluation["obvious"]["probabilities"]) > {"a capital", "mash"}


def test_differences_from_another_model_go_into_manifest_and_card(
    monkeypatch, tmp_path: Path, bundle_folder: Path, response_bundle_folder: Path, pairs: Path
) -> None:
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle")
    words = ("--bundle", bundle, "--pairs", pairs, "--record", "--card")
    assert run(monkeypatch, *words, "--against", response_bundle_folder) == 0
    other = Bundle.open(response_bundle_folder).manifest.identity
    recorded = Bundle.open(bundle).manifest.evaluation
    against, domains = recorded["against"], recorded["domains"]
    assert against["model"] == other
    assert list(against["differences"]) == ["safety", "chosen longer", "all"]
    expected = domains["all"]["accuracy"]["value"] - against["accuracy"]["all"]["value"]
    assert against["differences"]["all"]["value"] == pytest.approx(expected)
    assert f"| {other} | response | " in (bundle / "README.md").read_text()
    assert "against" not in Bundle.open(response_bundle_folder).manifest.evaluation
    assert run(monkeypatch, *words) == 0
    assert Bundle.open(bundle).manifest.evaluation["against"] == {}, "an earlier comparison is none of these figures"
    assert other not in (bundle / "README.md").read_text()


def test_half_a_section_of_a_card_and_a_bad_line_are_clear_errors(
    monkeypatch, capsys, tmp_path, bundle_folder, pairs
) -> None:
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle")
    begin, end = markers()
    for half in (begin, end, f"{end}\n{begin}"):
        (bundle / "README.md").write_text(f"# Toy\n{half}\n")
        assert run(monkeypatch, "--bundle", bundle, "--pairs", pairs, "--card") == 2
        assert f"{begin} and {end}" in capsys.readouterr().err
    pairs.write_text('{"prompt": "q", "chosen": ""}\n')
    assert run(monkeypatch, "--bundle", bundle_folder, "--pairs", pairs) == 2
    assert "line 1" in capsys.readouterr().err


def test_a_benchmark_writes_tables_json_and_pictures(monkeypatch, capsys, tmp_path, bundle_folder, judge_bench) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, "judge-bench", "--bundle", bundle_folder, "--data", judge_bench, "--out", out) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((out / "results.json").read_text()) == printed
    assert printed["benchmark"] == "judge-bench"
    assert printed["cost"]["pairs"] == 5
    assert "| **all pairs** | 5 |" in (out / "report.md").read_text()
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("reliability.png", "compute.png"))


@pytest.mark.parametrize("kind", ["bundle_folder", "response_bundle_folder"])
@pytest.mark.parametrize("name", ["reward-bench", "reward-bench-2", "rm-bench", "judge-bench"])
def test_every_benchmark_runs_on_a_model(capsys, request, tmp_path, name: str, kind: str) -> None:
    data, bundle = request.getfixturevalue(name.replace("-", "_")), request.getfixturevalue(kind)
    assert main([name, "--bundle", str(bundle), "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["benchmark"] == name
    # The tie-breaking term of RewardBench 2 lies between -0.01 and 0.01.
    assert -0.01 <= results["score"]["low"] <= results["score"]["value"] <= results["score"]["high"] <= 1.01
    assert results["cost"]["gflops_per_pair"] > 0
    assert results["length"]["all"]["pairs"] > 0


def test_benchmarks_are_recorded_beside_pairs(monkeypatch, tmp_path, bundle_folder, pairs, judge_bench) -> None:
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle")
    assert run(monkeypatch, "--bundle", bundle, "--pairs", pairs, "--record") == 0
    assert run(monkeypatch, "judge-bench", "--bundle", bundle, "--data", judge_bench, "--record") == 0
    recorded = Bundle.open(bundle).manifest.evaluation
    assert recorded["domains"]["all"]["pairs"] == 5
    assert recorded["judge-bench"]["score"]["value"] <= 1


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.jsonl"
    rows = [
        {"prompt": f"Question {i}", "chosen": "yes " * (1 + i % 9), "rejected": "no " * (1 + i % 7)} for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_refit_temperature_goes_into_the_bundle(monkeypatch, capsys, bundle_folder, pairs, held_out) -> None:
    bundle = shutil.copytree(bundle_folder, pairs.parent / "bundle")
    before = Bundle.open(bundle).manifest
    options = ("--bundle", bundle, "--pairs", pairs, "--fit-temperature", held_out)
    assert run(monkeypatch, *options) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Bundle.open(bundle).manifest == before
    assert run(monkeypatch, *options, "--write-temperature", "--record") == 0
    written = json.loads(capsys.readouterr().out.splitlines()[-1])
    after = Bundle.open(bundle).manifest
    assert shown["calibration"] == written["calibration"]
    assert after.temperature == written["calibration"]["held out, after"]["temperature"] != before.temperature
    assert after.revision != before.revision
    assert after.calibration
    assert (after.calibration.pairs, after.calibration.chosen) == (60, ("temperature",))
    assert written["model"] == after.identity
    assert written["domains"]["all"]["negative_log_likelihood"] == pytest.approx(
        written["calibration"]["here, after"]["negative_log_likelihood"]
    )
    before_, after_ = (written["calibration"][f"held out, {when}"] for when in ("before", "after"))
    assert after_["negative_log_likelihood"] <= before_["negative_log_likelihood"]
    assert run(monkeypatch, "--bundle", bundle, "--pairs", held_out, "--record") == 0
    assert Bundle.open(bundle).manifest.evaluation["calibration"] == {}, "an earlier fit is none of these figures"


def test_a_checkpoint_is_judged_under_one_instruction(monkeypatch, capsys, trained, pairs) -> None:
    assert run(monkeypatch, "--checkpoint", trained.adapter, "--pairs", pairs) == 0
    own = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert run(monkeypatch, "--checkpoint", trained.adapter, "--pairs", pairs, "--domain", "general") == 0
    general = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert own["engine"].startswith("torch-")
    likelihoods = [r["domains"]["safety"]["negative_log_likelihood"] for r in (own, general)]
    assert likelihoods[0] != likelihoods[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--pairs"),
        (("--pairs", "x", "--write-temperature"), "--fit-temperature"),
        (("--pairs", "x", "--fit-temperature", "y", "--record"), "--write-temperature"),
        (("obvious", "--pairs", "x"), "has its own data"),
        (("obvious", "--revision", "v1"), "on the hub"),
        (("rm-bench", "--split", "gpt"), "judge-bench"),
        (("rm-bench", "--data", "absent.json"), "absent.json"),
        (("rm-bench", "--pairs", "x"), "--data is their place"),
        (("--pairs", "x", "--data", "y"), "with --pairs"),
        (("--pairs", "x", "--out", __file__), "is a file"),
        (("--pairs", __file__, "--fit-temperature", __file__), "other pairs"),
        (("--pairs", "x", "--domain", "poetry"), "poetry"),
        (("--pairs", "x", "--against", "y", "--fit-temperature", "z", "--write-temperature"), "of one before"),
        (("--pairs", __file__, "--against", "absent"), "absent"),
    ],
)
def test_options_that_exclude_each_other_are_refused_by_name(
    monkeypatch, capsys, bundle_folder, options, message
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run(monkeypatch, *options, "--bundle", bundle_folder) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_only_a_bundle_can_be_written_to(monkeypatch, capsys, pairs) -> None:
    assert run(monkeypatch, "--service", "http://127.0.0.1:9", "--pairs", pairs, "--record") == 2
    assert "--bundle" in capsys.readouterr().err


def test_results_are_printed_even_if_they_cannot_be_written(
    monkeypatch, capsys, tmp_path, bundle_folder, pairs
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "below"
    assert run(monkeypatch, "--bundle", bundle_folder, "--pairs", pairs, "--out", out) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["domains"]["all"]["pairs"] == 5
    assert printed.err.startswith("evaluation: ")
    assert "Traceback" not in printed.err


def test_nothing_changes_in_a_bundle_if_the_benchmark_cannot_be_read(
    monkeypatch, tmp_path, bundle_folder, held_out
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle")
    options = ("--fit-temperature", held_out, "--write-temperature", "--record")
    assert run(monkeypatch, "rm-bench", "--bundle", bundle, "--data", "absent.json", *options) == 2
    assert Bundle.open(bundle).manifest == Bundle.open(bundle_folder).manifest


def test_results_contain_the_options_of_the_run(monkeypatch, capsys, bundle_folder, judge_bench) -> None:
    options = ("--data", judge_bench, "--domain", "general")
    assert run(monkeypatch, "judge-bench", "--bundle", bundle_folder, *options) == 0
    recorded = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert recorded["asked"] == {"data": str(judge_bench), "split": None, "domain": "general"}
    assert recorded["commit"] is None


def test_a_benchmark_on_the_hub_is_read_at_one_commit_which_the_results_name(
    monkeypatch, capsys, bundle_folder, judge_bench
) -> None:
    wanted = []

    def load(source: str, split: str, *, revision: str | None = None) -> Any:
        wanted.append((source, revision))
        return load_table(judge_bench, split)

    monkeypatch.setattr("evaluation.loading.load_table", load)
    monkeypatch.setattr("evaluation.run.dataset_commit", lambda source, revision: f"commit of {source} at {revision}")
    results = []
    for revision in ("v1", "v2"):
        options = ("--bundle", bundle_folder, "--data", "org/bench", "--revision", revision)
        assert run(monkeypatch, "judge-bench", *options) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    commits = [f"commit of org/bench at {revision}" for revision in ("v1", "v2")]
    assert wanted == [("org/bench", commit) for commit in commits]
    assert [result["commit"] for result in results] == commits
    assert results[0]["scored_sha256"] == results[1]["scored_sha256"]
    monkeypatch.undo()
    judge_bench.write_text(judge_bench.read_text().replace("question 3", "another question"))
    assert run(monkeypatch, "judge-bench", "--bundle", bundle_folder, "--data", judge_bench) == 0
    changed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert changed["scored_sha256"] != results[0]["scored_sha256"]


def test_a_revision_of_local_data_is_refused(monkeypatch, capsys, bundle_folder, judge_bench, pairs) -> None:
    for options in (("judge-bench", "--data", judge_bench), ("--pairs", pairs)):
        assert run(monkeypatch, *options, "--bundle", bundle_folder, "--revision", "v1") == 2
        assert "--revision is for a benchmark on the hub" in capsys.readouterr().err
