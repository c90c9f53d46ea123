"""Test python -m training: the recipe decides the stage."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.training.conftest import PAIRS, Toy
from tinyrm.modernbert.checkpoint import load_masked_lm
from training.__main__ import main, run


def test_help_names_recipe_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "--help": ("train", "compare", "sweep", "plan", "data"),
        "train": ("RECIPE.yaml", "--base", "--out", "--reads", "--set", "--recipe", "--data", "--resume", "--dry-run"),
        "compare": ("--seeds", "--peak-lrs", "--max-steps", "--out"),
        "sweep": ("--space", "--trials", "--storage", "--sampler", "--paper-protocol"),
        "plan": ("RECIPE.yaml", "--data"),
        "data": ("--held-out", "--decontaminate", "--drop", "--max-characters", "--write", "--conversations"),
    }
    for command, words in expected.items():
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        output = capsys.readouterr().out
        assert all(word in output for word in words), command


def test_the_command_runs_as_a_process_and_fails_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "none.yaml", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("training train: ")
    assert done.stderr.count("\n") == 1


def test_an_error_names_the_command_that_was_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["none.yaml"], prog="tinyrm train") == 2
    assert capsys.readouterr().err.startswith("tinyrm train: ")
    assert main(["plan", "none.yaml"], prog="tinyrm train") == 2
    assert capsys.readouterr().err.startswith("tinyrm train plan: ")


def test_the_three_stages_run_in_sequence(toy: Toy, tmp_path: Path) -> None:
    small = {"peak_lr": 1e-3, "max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32"}
    source = {"path": "pairs.jsonl", "kind": "pairs"}
    model = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    folders = {name: str(tmp_path / name) for name in ("tokenizer", "base", "cloze")}
    stages = [
        {"task": "tokenizer", "output_dir": folders["tokenizer"], "vocab_size": 330, "texts": [source]},
        {"task": "pretrain", "output_dir": folders["base"], "tokenizer": folders["tokenizer"], "model": model}
        | {"texts": [source], "block_tokens": 10, "optimization": small},
        {"task": "cloze", "output_dir": folders["cloze"], "model": folders["base"], "sources": [PAIRS]}
        | {"spec": {"max_tokens": 200}, "held_out_fraction": 0.2, "optimization": small},
    ]
    for stage in stages:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stage))
        run(tmp_path / "recipe.yaml", toy.data, resume=False)
    assert load_masked_lm(folders["cloze"]).config.num_hidden_layers == 2
    assert (tmp_path / "cloze" / "held_out.jsonl").is_file()


def test_options_reach_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("task: tokenizer")
    monkeypatch.setattr("training.__main__.run", lambda *args, **options: calls.append((args, options)))
    for command in ([], ["train"]):
        assert main([*command, "recipe.yaml", "--data", "pairs", "--resume"]) == 0
    assert main(["train", "--recipe", "recipe.yaml", "--data", "pairs", "--resume"]) == 0
    assert calls == [((Path("recipe.yaml"), Path("pairs")), {"resume": True, "fresh": False})] * 3
    assert main(["recipe.yaml", "--fresh"]) == 0
    assert calls[3][1] == {"resume": False, "fresh": True}
    assert main(["recipe.yaml", "--fresh", "--resume"]) == 2
    assert len(calls) == 4


@pytest.mark.parametrize(
    "arguments", [["no/such-recipe"], ["--recipe", "no/such-recipe"], ["compare", "none.yaml"], ["compare"], []]
)
def test_an_unknown_recipe_ends_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", ["output_dir: out", "task: reward"])
def test_a_recipe_without_a_known_task_is_refused_with_the_key(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    assert main([str(tmp_path / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert "`task` must be one of tokenizer, pretrain, cloze" in error
    assert error.count("\n") == 1


def test_each_wrong_key_of_a_recipe_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("task: tokenizer\noutput_dir: out\nvocab: 400\ntexts: []")
    assert main([str(tmp_path / "recipe.yaml")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("recipe.yaml: `vocab_size` is missing: a whole number")
    assert second.endswith("recipe.yaml: `vocab` is not a key of a recipe; did you mean `vocab_size`?")
