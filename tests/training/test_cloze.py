"""Test whole runs on a toy preference: they learn it, write what the export needs, and can be resumed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from tests.training.conftest import SPEC, Toy, read_log, toy_pairs, weights
from tinyrm.encoding import Encoding
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.pairs import read_pairs
from tinyrm.spec import HELD_OUT_FILE, RUN_FILE, Spec
from training.data.collate import RowCollator
from training.data.split import split_by_prompt
from training.output import RECIPE_FILE
from training.recipe import ClozeRecipe, Dora
from training.stages.cloze import train_cloze

Train = Callable[[ClozeRecipe], nn.Module]
# 64 pairs less the held-out ones make about a dozen steps of 4 pairs: step 16 lies inside the second epoch.
LONG_RUN = {"max_steps": 28, "save_steps": 16, "warmup_ratio": 0.1}


def final(output_dir: Path) -> dict[str, Tensor]:
    return weights(load_masked_lm(str(output_dir)))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], atol: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def long_run(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of an uninterrupted run over three epochs."""
    out = tmp_path_factory.mktemp("long") / "out"
    train_cloze(toy.recipe(out, LONG_RUN), toy.data, resume=False)
    return out


def test_accuracy_rises_from_chance_to_almost_certain(toy: Toy, tmp_path: Path) -> None:
    steps = {"peak_lr": 1e-2, "max_steps": 60, "batch_size": 16, "micro_batch_size": 16, "eval_steps": 5}
    train_cloze(toy.recipe(tmp_path, steps | {"warmup_ratio": 0.1}, loss="labels"), toy.data, resume=False)
    evaluations = [entry for entry in read_log(tmp_path) if "eval_accuracy_one_order" in entry]
    assert evaluations[0]["eval_accuracy_one_order"] < 0.7
    assert evaluations[-1]["eval_accuracy_one_order"] > 0.95
    assert evaluations[-1]["eval_swap_consistency"] > 0.9
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"] / 2


@pytest.mark.slow
def test_vocabulary_loss_first_teaches_a_label_word_at_the_mask(toy: Toy, tmp_path: Path) -> None:
    steps = {"peak_lr": 5e-3, "batch_size": 16, "micro_batch_size": 16, "warmup_ratio": 0.1}
    losses = []
    for max_steps in (1, 60):
        recipe = toy.recipe(tmp_path / str(max_steps), steps | {"max_steps": max_steps}, loss="vocabulary")
        losses.append(train_cloze(recipe, toy.data, resume=False)["eval_loss"])
    # From a guess among 384 words (5.95) to one between two (0.69).
    assert losses[0] > 5
    assert losses[1] < 0.8


def test_dora_learns_too_and_writes_only_the_adapter(toy: Toy, tmp_path: Path) -> None:
    steps = {"peak_lr": 6e-3, "max_steps": 80, "batch_size": 16, "micro_batch_size": 16, "warmup_ratio": 0.1}
    recipe = toy.recipe(tmp_path, steps, loss="labels", frozen_layers=1, dora=Dora(rank=16, alpha=16))
    train_cloze(recipe, toy.data, resume=False)
    assert read_log(tmp_path)[-1]["eval_accuracy_one_order"] > 0.9
    assert (tmp_path / "adapter_config.json").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    assert isinstance(PeftModel.from_pretrained(load_masked_lm(recipe.model), str(tmp_path)), PeftModel)


def test_run_writes_what_later_stages_need(toy: Toy, long_run: Path) -> None:
    assert Spec.load(long_run) == SPEC
    assert AutoTokenizer.from_pretrained(long_run).get_vocab() == AutoTokenizer.from_pretrained(toy.base).get_vocab()
    record = json.loads((long_run / RUN_FILE).read_text())
    assert ClozeRecipe.model_validate(record["recipe"]).output_dir == long_run
    assert record["data_sha256"] == {"pairs.jsonl": hashlib.sha256((toy.data / "pairs.jsonl").read_bytes()).hexdigest()}
    assert record["held_out"]["eval_accuracy"] == read_log(long_run)[-1]["eval_accuracy"]
    assert read_pairs(long_run / HELD_OUT_FILE) == split_by_prompt(toy_pairs(64), 0.25, seed=17)[1]


def test_log_has_a_record_of_every_tenth_step_and_every_evaluation(long_run: Path) -> None:
    log = read_log(long_run)
    assert [entry["step"] for entry in log if "loss" in entry] == [10, 20]
    assert all(isinstance(entry["loss"], float) for entry in log if "loss" in entry)
    assert log[-1]["step"] == 28


def test_a_run_that_starts_anew_starts_its_log_anew(toy: Toy, tmp_path: Path) -> None:
    for fresh in (False, True):
        train_cloze(toy.recipe(tmp_path), toy.data, resume=False, fresh=fresh)
    assert len([entry for entry in read_log(tmp_path) if "train_runtime" in entry]) == 1


def test_interrupted_and_resumed_run_ends_with_the_same_weights(toy: Toy, long_run: Path, tmp_path: Path) -> None:
    shutil.copytree(long_run / "checkpoint-16", tmp_path / "checkpoint-16")
    shutil.copy(long_run / RECIPE_FILE, tmp_path)
    train_cloze(toy.recipe(tmp_path, LONG_RUN), toy.data, resume=True)
    assert [entry["step"] for entry in read_log(tmp_path) if "loss" in entry] == [20], "it did not start over"
    assert_same(final(tmp_path), final(long_run), atol=0)


@pytest.mark.parametrize("dora", [None, Dora(rank=2, alpha=2)])
def test_written_weights_are_the_mean_of_the_named_checkpoints(toy: Toy, tmp_path: Path, dora: Dora | None) -> None:
    steps = {"max_steps": 9, "save_steps": 1, "average": (2, 4, 5)}
    train_cloze(toy.recipe(tmp_path, steps, dora=dora, frozen_layers=2), toy.data, resume=False)
    name = "adapter_model.safetensors" if dora else "model.safetensors"
    checkpoints = [load_file(tmp_path / f"checkpoint-{step}" / name) for step in (2, 4, 5)]
    assert not (tmp_path / "checkpoint-6").exists()
    written = load_file(tmp_path / name)
    for key, value in written.items():
        torch.testing.assert_close(value, torch.stack([each[key] for each in checkpoints]).mean(dim=0))
    assert any(not value.equal(checkpoints[-1][key]) for key, value in written.items())
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(InvalidInput, match="no checkpoint-2 to average"):
        train_cloze(toy.recipe(tmp_path, steps, dora=dora, frozen_layers=2), toy.data, resume=True)


def test_averaged_steps_must_be_saved(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no checkpoint is saved at step 3; save_steps is 2"):
        toy.recipe(tmp_path, {"save_steps": 2, "average": (2, 3)})


def test_same_seed_gives_the_same_adapter_and_another_seed_does_not(toy: Toy, tmp_path: Path) -> None:
    def adapter(name: str, seed: int) -> dict[str, Tensor]:
        recipe = toy.recipe(tmp_path / name, {"seed": seed}, dora=Dora(rank=2, alpha=2))
        train_cloze(recipe, toy.data, resume=False)
        return load_file(tmp_path / name / "adapter_model.safetensors")

    one, again, other = adapter("one", 5), adapter("again", 5), adapter("other", 6)
    assert_same(one, again, atol=0)
    assert any(not value.equal(other[name]) for name, value in one.items())


def test_accumulated_small_batches_make_the_step_of_one_large_batch(toy: Toy, tmp_path: Path) -> None:
    for name, micro_batch_size in (("1x8", 8), ("4x2", 2)):
        recipe = toy.recipe(tmp_path / name, {"micro_batch_size": micro_batch_size, "max_steps": 10})
        train_cloze(recipe, toy.data, resume=False)
    assert_same(final(tmp_path / "1x8"), final(tmp_path / "4x2"), atol=1e-5)
    at_once, in_parts = (next(e for e in read_log(tmp_path / name) if "loss" in e) for name in ("1x8", "4x2"))
    # Adam forgives a gradient of the wrong scale; clipping, and whoever reads the log, would not.
    for key in ("loss", "grad_norm"):
        assert in_parts[key] == pytest.approx(at_once[key], rel=1e-4)


def test_too_few_pairs_to_hold_any_out_are_refused_before_training(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(toy_pairs(1)[0].model_dump_json())
    with pytest.raises(InvalidInput, match="1 pairs are too few"):
        train_cloze(toy.recipe(tmp_path / "out"), tmp_path, resume=False)


def test_the_recipe_can_limit_the_tokens_of_training(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    collate = RowCollator.__call__

    def spied(collator: RowCollator, pairs: list[tuple[Encoding, ...]]) -> dict[str, Tensor]:
        lengths.extend(len(encoding) for pair in pairs for encoding in pair)
        return collate(collator, pairs)

    monkeypatch.setattr(RowCollator, "__call__", spied)
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            p.model_copy(update={"prompt": p.prompt + " word" * 90}).model_dump_json() + "\n" for p in toy_pairs(40)
        )
    )
    train_cloze(toy.recipe(tmp_path / "out", train_max_tokens=100), tmp_path, resume=False)
    assert max(lengths) == 100
    assert Spec.load(tmp_path / "out").max_tokens == SPEC.max_tokens
