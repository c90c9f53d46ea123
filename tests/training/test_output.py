"""Test which runs a folder lets begin, continue or be replaced: nothing of another run is lost or continued."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Toy, toy_pairs
from tests.training.published import WEBGPT, parquet, webgpt_row
from tinyrm.errors import InvalidInput
from tinyrm.spec import RUN_FILE
from training.__main__ import main
from training.output import RECIPE_FILE, WRITTEN, alone_in, begin, pinned, prepare_output, refuse_weights
from training.recipe import (
    ClozeRecipe,
    DistilRecipe,
    MergeRecipe,
    PretrainRecipe,
    SftRecipe,
    TokenizerRecipe,
)
from training.stages.cloze import train_cloze
from training.stages.merge import merge_specialists
from training.stages.tokenizer import train_tokenizer

DATA = {"pairs.jsonl": "0" * 64}


def write_pairs(folder: Path, count: int = 64) -> None:
    (folder / "pairs.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in toy_pairs(count)))


def file_of(pattern: str) -> str:
    """Return a name that the pattern matches."""
    return pattern.replace("*", "-1.", 1).replace("*", "") if "*" in pattern else pattern


def begun(recipe: ClozeRecipe, data: dict[str, str], *, resume: bool, fresh: bool = False) -> str | None:
    """Begin a run as a stage does; return the checkpoint that it continues from."""
    start = prepare_output(recipe, data, resume=resume, fresh=fresh)
    begin(recipe.output_dir, start)
    return start.checkpoint


@pytest.mark.parametrize("name", ["checkpoint-999", *map(file_of, WRITTEN)])
@pytest.mark.parametrize("resume", [False, True])
def test_what_no_run_of_ours_wrote_is_never_replaced(toy: Toy, tmp_path: Path, name: str, resume: bool) -> None:
    held = tmp_path / name
    if name.startswith("checkpoint"):
        held.mkdir()
    else:
        held.write_text("somebody's")
    with pytest.raises(InvalidInput, match=r"holds another run \(.*no recipe.json.*--fresh to replace it"):
        begun(toy.recipe(tmp_path), DATA, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("recipe", "another recipe"),
        ("base", "another base"),
        ("tokenizer", "another tokenizer"),
        ("data", "other data"),
        ("file", "other data"),
    ],
)
def test_a_run_of_anything_else_is_neither_continued_nor_replaced(
    toy: Toy, tmp_path: Path, change: str, reason: str, resume: bool
) -> None:
    base = tmp_path / "base"
    shutil.copytree(toy.base, base)
    recipe, data = toy.recipe(tmp_path / "out", model=str(base)), DATA
    begun(recipe, data, resume=False)
    (tmp_path / "out" / "checkpoint-7").mkdir()
    if change == "recipe":
        recipe = toy.recipe(tmp_path / "out", {"peak_lr": 2e-3}, model=str(base))
    elif change == "data":
        data = {"pairs.jsonl": "1" * 64}
    elif change == "file":
        data = DATA | {"more.jsonl": "1" * 64}
    else:
        name = {"base": "model.safetensors", "tokenizer": "tokenizer.json"}[change]
        (base / name).write_bytes((base / name).read_bytes() + b" ")
    with pytest.raises(InvalidInput, match=reason):
        begun(recipe, data, resume=resume)
    assert (tmp_path / "out" / "checkpoint-7").is_dir()
    assert begun(recipe, data, resume=False, fresh=True) is None
    assert not (tmp_path / "out" / "checkpoint-7").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_from_another_commit_of_a_base_on_the_hub_is_not_continued(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """A branch has moved to a commit with the same weights: what else changed there is not known."""
    commits = [tmp_path / "snapshots" / (letter * 40) for letter in "ab"]
    for commit in commits:
        shutil.copytree(toy.base, commit)
    recipe = toy.recipe(tmp_path / "out", model="org/base")
    monkeypatch.setattr("training.output.checkpoint_folder", lambda *_: commits[0])
    start = prepare_output(recipe, DATA, resume=False)
    assert pinned(recipe, start).revision == "a" * 40
    begin(recipe.output_dir, start)
    (tmp_path / "out" / "checkpoint-7").mkdir()
    assert begun(recipe, DATA, resume=True) == str(tmp_path / "out" / "checkpoint-7")
    monkeypatch.setattr("training.output.checkpoint_folder", lambda *_: commits[1])
    with pytest.raises(InvalidInput, match=r": another commit of the base\. Set another output_dir"):
        begun(recipe, DATA, resume=resume)
    assert begun(recipe, DATA, resume=False, fresh=True) is None


def test_the_same_run_continues_with_resume_and_is_replaced_with_fresh_only(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path)
    begun(recipe, DATA, resume=False)
    (tmp_path / "log.jsonl").touch()
    assert begun(recipe, DATA, resume=False) is None, "it ended before its first checkpoint"
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(InvalidInput, match=r"holds this run \(checkpoint-7\).*--fresh.*--resume"):
        begun(recipe, DATA, resume=False)
    assert begun(recipe, DATA, resume=True) == str(tmp_path / "checkpoint-7")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / RUN_FILE).touch()
    assert begun(recipe, DATA, resume=True)
    (tmp_path / "checkpoint-7").rmdir()
    with pytest.raises(InvalidInput, match=r"holds this run \(model.safetensors\)"):
        begun(recipe, DATA, resume=True)
    begun(recipe, DATA, resume=False, fresh=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", RECIPE_FILE], "no old weights remain"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_never_writes_over_what_it_reads(toy: Toy, tmp_path: Path, fresh: bool) -> None:
    shutil.copytree(toy.base, tmp_path / "base")
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    fields = toy.recipe(tmp_path / "base", model=f"{tmp_path}/base/../base").model_dump()
    optimization = fields["optimization"]
    sft = {"task": "sft", "output_dir": tmp_path / "base", "model": str(tmp_path / "base")}
    text = {"path": "text.jsonl", "kind": "documents"}
    recipes: list[Any] = [
        ClozeRecipe.model_validate(fields),
        DistilRecipe.model_validate(
            fields | {"task": "distil", "model": "other", "teachers": {"safety": {"path": str(tmp_path / "base")}}}
        ),
        SftRecipe.model_validate(sft | {"conversations": ["a.jsonl"], "optimization": optimization}),
        PretrainRecipe.model_validate(
            sft | {"task": "pretrain", "tokenizer": "t", "texts": [text], "optimization": optimization}
        ),
    ]
    for recipe in recipes:
        with pytest.raises(InvalidInput, match="which the run reads"):
            begun(recipe, DATA, resume=False, fresh=fresh)
    merge = MergeRecipe.model_validate(
        {"task": "merge", "output_dir": tmp_path / "base", "method": "mean"}
        | {"specialists": [{"path": str(tmp_path / "base")}, {"path": "other"}]}
    )
    with pytest.raises(InvalidInput, match="which the run reads"):
        merge_specialists(merge, fresh=fresh)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before


def test_merging_and_a_new_vocabulary_do_not_replace_another_model(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("somebody's")
    merge = MergeRecipe.model_validate(
        {"task": "merge", "output_dir": tmp_path, "method": "mean", "specialists": [{"path": "a"}, {"path": "b"}]}
    )
    texts = [{"path": "pairs.jsonl", "kind": "pairs"}]
    vocabulary = TokenizerRecipe.model_validate(
        {"task": "tokenizer", "output_dir": tmp_path, "vocab_size": 400, "texts": texts}
    )
    with pytest.raises(InvalidInput, match="holds another model"):
        merge_specialists(merge)
    with pytest.raises(InvalidInput, match="holds another model"):
        train_tokenizer(vocabulary, toy.data)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    train_tokenizer(vocabulary, toy.data, fresh=True)
    assert (tmp_path / "tokenizer.json").is_file()


def test_a_recipe_that_is_refused_costs_no_earlier_run(toy: Toy, tmp_path: Path) -> None:
    train_cloze(toy.recipe(tmp_path / "out", {"max_steps": 1}), toy.data, resume=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    write_pairs(tmp_path, 1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "too few"),
        ({"frozen_layers": 4}, "leaves nothing to learn"),
        ({"model": str(tmp_path)}, ""),
        ({"sources": [{"dataset": "jsonl", "path": "none.jsonl"}]}, "does not exist"),
    ]
    for changes, message in wrong:
        data = toy.data if "frozen_layers" in changes else tmp_path
        with pytest.raises(InvalidInput, match=message):
            train_cloze(toy.recipe(tmp_path / "out", **changes), data, resume=False, fresh=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_an_interrupted_merge_can_be_made_again(toy: Toy, tmp_path: Path) -> None:
    recipe = {"task": "merge", "output_dir": "out", "method": "mean", "specialists": [{"path": "a"}, {"path": "b"}]}
    (tmp_path / RECIPE_FILE).write_text(json.dumps({"recipe": recipe}))
    (tmp_path / "model.safetensors").touch()
    refuse_weights(tmp_path, "merge")
    with pytest.raises(InvalidInput, match="holds another model"):
        refuse_weights(tmp_path, "tokenizer")


def test_a_resumed_run_refuses_data_that_changed(toy: Toy, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    recipe = toy.recipe(tmp_path / "out", {"max_steps": 1})
    train_cloze(recipe, tmp_path, resume=False)
    train_cloze(recipe, tmp_path, resume=True)
    write_pairs(tmp_path, 63)
    with pytest.raises(InvalidInput, match="other data"):
        train_cloze(recipe, tmp_path, resume=True)


def test_a_resumed_run_refuses_a_copy_of_a_published_set_that_changed(toy: Toy, tmp_path: Path) -> None:
    rows = [webgpt_row(f"Question {i}", ("correct", "safer"), 1.0) for i in range(40)]
    parquet(rows, WEBGPT, tmp_path / "webgpt.parquet")
    recipe = toy.recipe(tmp_path / "out", {"max_steps": 1}, sources=[{"dataset": "webgpt"}])
    train_cloze(recipe, tmp_path, resume=False)
    record = json.loads((tmp_path / "out" / RUN_FILE).read_text())
    assert list(record["data_sha256"]) == ["webgpt"]
    assert record["data_revisions"] == {}
    parquet(rows[:-1], WEBGPT, tmp_path / "webgpt.parquet")
    with pytest.raises(InvalidInput, match="other data"):
        train_cloze(recipe, tmp_path, resume=True)


def test_a_folder_whose_record_is_damaged_counts_as_another_run(toy: Toy, tmp_path: Path) -> None:
    begun(toy.recipe(tmp_path), DATA, resume=False)
    (tmp_path / "checkpoint-7").mkdir()
    for content in ("{", "[]", json.dumps({"recipe": 3})):
        (tmp_path / RECIPE_FILE).write_text(content)
        with pytest.raises(InvalidInput, match="holds another run"):
            begun(toy.recipe(tmp_path), DATA, resume=True)


def test_a_folder_that_another_command_writes_to_is_refused_and_an_empty_one_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    with alone_in(folder), pytest.raises(InvalidInput, match="another command writes to"), alone_in(folder):
        pass
    assert not folder.exists()
    with alone_in(folder):
        (folder / "model.safetensors").touch()
    assert (folder / "model.safetensors").is_file()


def test_a_run_holds_its_folder(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(toy.recipe(tmp_path / "run").model_dump_json())
    with alone_in(tmp_path / "run"):
        assert main([str(tmp_path / "mine.yaml"), "--data", str(toy.data)]) == 2
    assert "another command writes to" in capsys.readouterr().err
