"""Test that preferences are read in fp32 under autocast, and what a run does where numbers stop being finite."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, EvalPrediction

from tests.conftest import Trained, spread
from tests.training.conftest import SPEC, Toy, read_log, toy_pairs
from tinyrm.encoding import Encoder
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.modernbert.sets import Places
from tinyrm.pairs import read_pairs
from tinyrm.spec import HELD_OUT_FILE, HeadKind
from training.arguments import training_arguments
from training.data.collate import PairSampling
from training.data.groups import Group, GroupCollator, GroupDataset
from training.experiments.grid import measure
from training.model.heads import collator_for, encoder_for, readout, set_encoder
from training.recipe import ClozeRecipe, Dora
from training.stages import cloze
from training.stages.cloze import ClozeTrainer, learning_model, preference_metrics, train_cloze
from training.trainer import Diverged

HEADS: list[dict[str, Any]] = [
    *({"head": head} for head in ("cloze", "pair-cls", "pair-mean", "pointwise", "tokens")),
    {"head": "set", "sets": {"others": "tokens"}},
    {"head": "set", "sets": {"others": "none", "read_at": "mean"}},
]


@pytest.fixture
def far(trained: Trained, tmp_path: Path, toy_encoder: Encoder) -> Path:
    """Write a base whose label logits are near 20, as the vocabulary loss makes them."""
    folder = tmp_path / "base"
    model = load_masked_lm(str(trained.base))
    with torch.no_grad():
        model.decoder.bias[list(toy_encoder.label_ids)] += 20
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(trained.base / name, folder)
    return folder


@pytest.fixture
def bert(toy: Toy, tmp_path: Path) -> Path:
    """Write a BERT, whose body holds the pooler that its classifier reads."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = BertForMaskedLM(BertConfig(vocab_size=600, max_position_embeddings=128, pad_token_id=3, **sizes))
    spread(model)
    model.save_pretrained(tmp_path / "bert")
    for file in toy.base.glob("*token*"):
        shutil.copy(file, tmp_path / "bert")
    return tmp_path / "bert"


def inputs_of(head: HeadKind, encoder: Encoder) -> dict[str, Tensor]:
    if head == "set":
        groups = GroupDataset(
            [Group.of_pair(pair) for pair in toy_pairs(9)],
            set_encoder(encoder, encoder._text.tokenizer),
            PairSampling(SPEC, seed=0),
        )
        return GroupCollator(encoder.special.pad)([groups[i] for i in range(len(groups))])
    texts = encoder_for(head, encoder, encoder._text.tokenizer)
    items: list[Any] = [texts.encode(p.comparison(), SPEC.instruction(p.domain), swap=True) for p in toy_pairs(9)]
    return collator_for(head, encoder)(items)


def label_logits(recipe: ClozeRecipe, encoder: Encoder, model: nn.Module) -> Tensor:
    read = readout(recipe.head)
    if recipe.head == "cloze":
        read = ClozeTrainer(
            label_ids=encoder.label_ids,
            label_loss=True,
            recipe=recipe,
            model=model,
            args=training_arguments(recipe, 2),
            eval_dataset=[],
        ).read_mask
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return read(model.eval(), inputs_of(recipe.head, encoder))[1]


@pytest.mark.parametrize("adapter", [None, Dora(rank=2, alpha=2)], ids=["weights", "adapter"])
@pytest.mark.parametrize("parts", HEADS, ids=str)
def test_every_head_is_read_in_fp32_under_autocast(
    far: Path, toy: Toy, toy_encoder: Encoder, parts: dict[str, Any], adapter: Dora | None
) -> None:
    assert_read_in_fp32(toy.recipe(far.parent / "out", model=str(far), dora=adapter, **parts), toy_encoder)


@pytest.mark.parametrize("parts", [each for each in HEADS if each["head"] != "pair-mean"], ids=str)
def test_a_bert_is_read_in_fp32_under_autocast(
    bert: Path, toy: Toy, toy_encoder: Encoder, parts: dict[str, Any]
) -> None:
    assert_read_in_fp32(toy.recipe(bert.parent / "out", model=str(bert), **parts), toy_encoder)


def assert_read_in_fp32(recipe: ClozeRecipe, encoder: Encoder) -> None:
    """Check the logits, and all linears: those of the body's layers are in bf16, those above them in fp32."""
    torch.manual_seed(0)
    model = learning_model(recipe)
    logits = label_logits(recipe, encoder, model)
    assert logits.dtype == torch.float32
    assert not logits.equal(logits.bfloat16().float()), "every logit is one of bf16"
    kinds: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            in_layer = bool(re.search(r"\.layers?\.\d+\.", name))
            module.register_forward_hook(lambda _, __, out, in_layer=in_layer: kinds[in_layer].add(out.dtype))
    label_logits(recipe, encoder, model)
    assert kinds[True] - {torch.float32} == {torch.bfloat16}, "the body stays in bf16"
    assert kinds[False] == {torch.float32}


def test_the_mean_of_a_response_is_not_rounded_under_autocast() -> None:
    ids, mask = torch.tensor([[1, 7, 2, 7, 7, 4, 2, 7, 4, 2]]), torch.ones(1, 10, dtype=torch.long)
    places = Places.find(ids, mask, mask_id=4, sep_id=2)
    states = torch.randn(1, 10, 8)
    with torch.autocast("cpu", torch.bfloat16):
        means = places.means(states, mask)
    torch.testing.assert_close(means[0], torch.stack([states[0, 3:7].mean(0), states[0, 7:].mean(0)]))


@pytest.mark.parametrize("loss", ["vocabulary", "labels"])
def test_a_bf16_run_measures_margins_that_are_not_rounded(
    far: Path, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    found: list[NDArray[np.float32]] = []

    def spy(prediction: EvalPrediction) -> dict[str, float]:
        found.append(np.asarray(prediction.predictions))
        return preference_metrics(prediction)

    monkeypatch.setattr(cloze, "preference_metrics", spy)
    steps = {"precision": "bf16", "peak_lr": 1e-5}
    train_cloze(toy.recipe(tmp_path, steps, model=str(far), loss=loss), toy.data, resume=False)
    margins = found[-1].ravel()
    # Logits near 20 have steps of 1/8 in bf16, and so would their differences.
    off_grid = np.abs(margins * 8 - np.round(margins * 8)) > 1e-3
    assert off_grid.mean() > 0.9


def test_a_bf16_run_measures_what_its_checkpoint_gives(far: Path, toy: Toy, tmp_path: Path) -> None:
    metrics = train_cloze(
        toy.recipe(tmp_path, {"precision": "bf16", "peak_lr": 1e-5}, model=str(far)), toy.data, resume=False
    )
    for name, value in measure(tmp_path, read_pairs(tmp_path / HELD_OUT_FILE)).items():
        # The body is in bf16, so that a margin near 0 may have another sign.
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=0.13), name


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ClozeTrainer.compute_loss

    def broken(trainer: ClozeTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = compute(trainer, *args, **kwargs)
        return loss * float("nan") if trainer.state.global_step == 2 else loss

    monkeypatch.setattr(ClozeTrainer, "compute_loss", broken)
    with pytest.raises(Diverged, match=r"loss is nan in step 3, in a batch of 8 sequences of \d+ tokens"):
        train_cloze(toy.recipe(tmp_path, {"max_steps": 20, "save_steps": 1}), toy.data, resume=False)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ClozeTrainer.compute_loss

    def broken(trainer: ClozeTrainer, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loss = compute(trainer, model, *args, **kwargs)
        if trainer.state.global_step == 2 and model.training:  # the root of 0 is 0, its slope is infinite
            loss = loss + sum((p - p.detach()).abs().sum().sqrt() for p in model.parameters() if p.requires_grad)
        return loss

    monkeypatch.setattr(ClozeTrainer, "compute_loss", broken)
    with pytest.raises(Diverged, match="gradient is nan in step 3"):
        train_cloze(toy.recipe(tmp_path, {"max_steps": 20, "save_steps": 1}), toy.data, resume=False)
    newest = load_masked_lm(str(tmp_path / "checkpoint-2"))
    assert all(parameter.isfinite().all() for parameter in newest.parameters())


def test_held_out_data_with_an_infinite_loss_end_the_run_before_it_saves(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ClozeTrainer.compute_loss

    def broken(trainer: ClozeTrainer, model: nn.Module, *args: Any, return_outputs: bool = False, **kw: Any) -> Any:
        found = compute(trainer, model, *args, return_outputs=return_outputs, **kw)
        return (found[0] * float("inf"), found[1]) if return_outputs else found

    monkeypatch.setattr(ClozeTrainer, "compute_loss", broken)
    with pytest.raises(Diverged, match="eval_loss is inf on held-out data after step 2"):
        train_cloze(toy.recipe(tmp_path), toy.data, resume=False)
    assert not (tmp_path / "model.safetensors").exists()


def test_bf16_trains_on_a_machine_without_a_gpu(toy: Toy, tmp_path: Path) -> None:
    train_cloze(toy.recipe(tmp_path, {"precision": "bf16"}), toy.data, resume=False)
    assert read_log(tmp_path)[-1]["step"] == 2


def test_bf16_on_an_accelerator_without_it_is_refused(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.arguments.uses_cpu", lambda: False)
    with pytest.raises(InvalidInput, match=r"bf16.*or set `precision: fp32`"):
        training_arguments(toy.recipe(tmp_path, {"precision": "bf16"}))
