"""Test that a run without memory ends in one line with what to change, and that it does so in its first step."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import AutoTokenizer

from tests.training.conftest import Toy
from training.__main__ import main
from training.data.conversations import Conversation
from training.loading import find_recipe, read_recipe
from training.recipe import LearningRecipe, PretrainRecipe, SftRecipe
from training.stages.cloze import ClozeTrainer, train_cloze
from training.stages.sft import load_conversations
from training.trainer import OutOfMemory, is_out_of_memory, remedies

CPU_FULL = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"
FULL = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError(CPU_FULL), MemoryError()]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_step_without_memory_ends_the_run_with_its_batch_and_three_settings(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(ClozeTrainer, "compute_loss", full)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(toy.recipe(tmp_path / "out").model_dump(mode="json")))
    assert main([str(tmp_path / "recipe.yaml"), "--data", str(toy.data)]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "out of memory in step 1, in a batch of 8 sequences of " in message
    for setting in ("micro_batch_size: 4", "activation_checkpointing: true", "train_max_tokens: 60"):
        assert setting in message
    assert message.count("; or ") == 2


def test_an_evaluation_without_memory_names_what_helps_there(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ClozeTrainer.compute_loss

    def full(trainer: ClozeTrainer, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not model.training:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(trainer, model, *args, **kwargs)

    monkeypatch.setattr(ClozeTrainer, "compute_loss", full)
    with pytest.raises(OutOfMemory, match="in the evaluation after step 2, in a batch of 8 sequences") as failure:
        train_cloze(toy.recipe(tmp_path), toy.data, resume=False)
    assert "activation_checkpointing" not in str(failure.value), "no activations are kept in evaluation"


def test_another_error_is_not_taken_for_one_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def shipped(kind: type[LearningRecipe], name: str) -> LearningRecipe:
    return kind.model_validate(read_recipe(find_recipe(name)))


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, ["micro_batch_size", "activation_checkpointing", "train_max_tokens"]),
        ({"trainer": {"activation_checkpointing": True}}, ["micro_batch_size", "train_max_tokens", "dora"]),
        (
            {"trainer": {"activation_checkpointing": True}, "optimization": {"micro_batch_size": 2}},
            ["train_max_tokens", "dora", "optimization.precision"],
        ),
    ],
)
def test_settings_that_a_recipe_has_already_are_not_named(
    toy: Toy, tmp_path: Path, changes: dict[str, Any], settings: list[str]
) -> None:
    named = remedies(toy.recipe(tmp_path, **changes), evaluates=False)
    assert len(named) == len(settings)
    assert all(setting in text for setting, text in zip(settings, named, strict=True))


def test_other_stages_name_their_own_settings() -> None:
    sft = remedies(shipped(SftRecipe, "tinyrm/large-sft"), evaluates=False)
    pretrain = remedies(shipped(PretrainRecipe, "from_scratch/2-pretrain"), evaluates=False)
    assert [text for text in sft if text.startswith("max_tokens: ")]
    assert [text for text in pretrain if text.startswith("block_tokens: ")]


def test_held_out_conversations_are_evaluated_the_longest_first(toy: Toy, tmp_path: Path) -> None:
    talks = [
        Conversation.model_validate(
            {
                "messages": [
                    {"role": "user", "content": f"{i}?"},
                    {"role": "assistant", "content": "word " * (1 + 7 * i % 30)},
                ]
            }
        )
        for i in range(40)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(talk.model_dump_json() + "\n" for talk in talks))
    recipe = SftRecipe.model_validate(
        {
            "task": "sft",
            "output_dir": tmp_path / "out",
            "model": str(toy.base),
            "conversations": ["talks.jsonl"],
            "held_out_fraction": 0.3,
            "optimization": {"peak_lr": 1e-3},
        }
    )
    _, held_out = load_conversations(recipe, tmp_path, AutoTokenizer.from_pretrained(toy.base))
    lengths = held_out.lengths()
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 3


def test_the_first_step_holds_the_longest_texts(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[bool, int]] = []
    compute = ClozeTrainer.compute_loss

    def spied(trainer: ClozeTrainer, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        shapes.append((model.training, int(inputs["attention_mask"].sum(dim=1).max())))
        return compute(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(ClozeTrainer, "compute_loss", spied)
    train_cloze(toy.recipe(tmp_path, {"max_steps": 11}), toy.data, resume=False)
    for training in (True, False):
        lengths = [tokens for trains, tokens in shapes if trains == training]
        assert lengths[0] == max(lengths) > min(lengths)
