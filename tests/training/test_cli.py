"""python -m training: the recipe decides the stage."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.training.conftest import PAIRS, Toy
from tinyrm.modernbert.checkpoint import load_masked_lm
from training.__main__ import main, run


def test_help_names_recipe_and_options() -> None:
    command = [sys.executable, "-m", "training", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert all(word in done.stdout for word in ("RECIPE.yaml", "--recipe", "--data", "--resume", "--dry-run"))


def test_the_three_stages_follow_each_other(toy: Toy, tmp_path: Path) -> None:
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
    monkeypatch.setattr("sys.argv", ["training", "recipe.yaml", "--data", "pairs", "--resume"])
    main()
    assert calls == [((Path("recipe.yaml"), Path("pairs")), {"resume": True})]


@pytest.mark.parametrize("arguments", [["no/such-recipe"], ["--recipe", "no/such-recipe"]])
def test_an_unknown_recipe_ends_with_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["training", *arguments])
    assert main() == 1
    assert capsys.readouterr().err.count("\n") == 1
