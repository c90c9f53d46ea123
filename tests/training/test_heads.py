"""Test that the baselines learn the toy preference with the cloze's trainer, and can be resumed, saved and loaded."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, EvalPrediction

from tests.conftest import Trained
from tests.training.conftest import SPEC, Toy, read_log, toy_pairs
from tinyrm.encoding import Encoder
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.adapter import load_with_adapter, plain
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.modernbert.heads import load_head
from tinyrm.spec import HeadKind
from training.model.heads import collator_for, readout, swap_disagreement
from training.model.marked_encoder import MarkedEncoder
from training.model.places import HeadAtPlaces
from training.output import RECIPE_FILE
from training.recipe import ClozeRecipe, DistilRecipe, Dora
from training.stages import cloze
from training.stages.cloze import learning_model, preference_metrics, train_cloze

HEADS: list[HeadKind] = ["pair-cls", "pair-mean", "pointwise", "tokens"]
ONE_BY_ONE: list[HeadKind] = ["pointwise", "tokens"]
SLOW = pytest.mark.slow
# `make test` trains the two heads with losses of their own; test_a_pair_head_learns_from_one_order... trains a third.
TRAINED = [pytest.param(head, marks=() if head in ONE_BY_ONE else SLOW) for head in HEADS]
Train = Callable[[ClozeRecipe], nn.Module]
LEARNS = {"peak_lr": 1e-2, "max_steps": 80, "batch_size": 16, "micro_batch_size": 16, "warmup_ratio": 0.1}
ADAPTER = {"rank": 2, "alpha": 2}
# Each head once, as full weights or as an adapter.
PARTS = [
    pytest.param({"head": "pair-cls"}, marks=SLOW),
    {"head": "pair-mean", "dora": ADAPTER},
    pytest.param({"head": "pointwise", "dora": ADAPTER}, marks=SLOW),
    {"head": "tokens"},
]
# Step 14 lies in the second epoch.
TWO_EPOCHS = {"max_steps": 16, "save_steps": 14, "peak_lr": 1e-2, "warmup_ratio": 0.1}


def batch_for(head: HeadKind, encoder: Encoder, count: int = 9) -> dict[str, Tensor]:
    """Return rows of toy pairs; markers are close together, so that short texts have several."""
    alone = Encoder(encoder._text.tokenizer, encoder.template.of_one_response(), encoder.special, encoder.max_tokens)
    texts = {"tokens": MarkedEncoder(alone, 2), "pointwise": alone}.get(head, encoder)
    items = [texts.encode(p.comparison(), SPEC.instruction(p.domain), swap=True) for p in toy_pairs(count)]
    return collator_for(head, encoder)(items)


def loaded_head(head: HeadKind, base: Path) -> nn.Module:
    model = load_head(head, str(base)).eval()
    HeadAtPlaces(model, mean=head == "pair-mean")
    return model


def read(head: HeadKind, model: nn.Module, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    with torch.no_grad():
        loss, logits = readout(head)(model, batch)
    return float(loss), logits


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize("head", TRAINED)
def test_a_head_learns_the_toy_preference(toy: Toy, tmp_path: Path, head: HeadKind) -> None:
    train_cloze(toy.recipe(tmp_path, LEARNS, head=head), toy.data, resume=False)
    assert read_log(tmp_path)[-1]["eval_accuracy_one_order"] > 0.95
    assert read_log(tmp_path)[-1]["eval_loss"] < 0.3


@pytest.mark.parametrize("head", TRAINED)
def test_an_untrained_head_is_at_chance(toy: Toy, tmp_path: Path, head: HeadKind) -> None:
    train_cloze(toy.recipe(tmp_path, {"max_steps": 1, "peak_lr": 1e-9}, head=head), toy.data, resume=False)
    assert read_log(tmp_path)[-1]["eval_loss"] > math.log(2) - 0.1


@pytest.mark.parametrize("head", ONE_BY_ONE)
def test_scores_of_single_responses_swap_with_them(
    toy: Toy, trained: Trained, tmp_path: Path, toy_encoder: Encoder, head: HeadKind
) -> None:
    torch.manual_seed(1)
    _, logits = read(head, loaded_head(head, trained.base), batch_for(head, toy_encoder))
    assert torch.equal(logits[0::2], logits[1::2].flip(1))
    assert float(swap_disagreement(logits)) == 0
    assert (logits[:, 0] - logits[:, 1]).abs().min() > 1e-4, "and it prefers one of them"
    train_cloze(toy.recipe(tmp_path, head=head), toy.data, resume=False)
    last = read_log(tmp_path)[-1]
    assert (last["eval_swap_consistency"], last["eval_first_position_margin"]) == (1.0, 0.0)


def test_a_pair_head_is_not_symmetric_by_itself(trained: Trained, toy_encoder: Encoder) -> None:
    torch.manual_seed(1)
    _, logits = read("pair-cls", loaded_head("pair-cls", trained.base), batch_for("pair-cls", toy_encoder))
    assert float(swap_disagreement(logits)) > 1e-4


def test_pointwise_loss_is_bradley_terry(trained: Trained, toy_encoder: Encoder) -> None:
    torch.manual_seed(1)
    model, batch = loaded_head("pointwise", trained.base), batch_for("pointwise", toy_encoder)
    loss, _ = read("pointwise", model, batch)
    with torch.no_grad():
        scores = model(batch["input_ids"], batch["attention_mask"]).logits.squeeze(-1).tolist()
    by_hand = [-log_sigmoid(chosen - rejected) for chosen, rejected in zip(scores[0::2], scores[1::2], strict=True)]
    assert loss == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)
    assert abs(loss - math.log(2)) > 1e-3


def test_token_labels_are_the_responses_own_and_the_mean_logit_decides(trained: Trained, toy_encoder: Encoder) -> None:
    torch.manual_seed(1)
    model, batch = loaded_head("tokens", trained.base), batch_for("tokens", toy_encoder)
    loss, logits = read("tokens", model, batch)
    with torch.no_grad():
        dense = model(batch["input_ids"], batch["attention_mask"]).logits.squeeze(-1)
    at_markers = [part.tolist() for part in dense.flatten()[batch["read_at"]].split(batch["places"].tolist())]
    assert {len(row) for row in at_markers} == {1, 2}, "a marker at the beginning and after two words"
    sides = [-sum(log_sigmoid(x if i % 2 == 0 else -x) for x in row) / len(row) for i, row in enumerate(at_markers)]
    assert loss == pytest.approx(sum(sides) / len(sides), abs=1e-5)
    assert logits[:, 0].tolist() == pytest.approx([sum(row) / len(row) for row in at_markers], abs=1e-5)


@pytest.mark.parametrize("head", ["pair-cls", "pair-mean"])
def test_a_pair_head_pools_the_named_position(trained: Trained, toy_encoder: Encoder, head: HeadKind) -> None:
    torch.manual_seed(1)
    model, batch = loaded_head(head, trained.base), batch_for(head, toy_encoder)
    _, logits = read(head, model, batch)
    with torch.no_grad():
        hidden = model.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        real = batch["attention_mask"].unsqueeze(-1)
        pooled = hidden[:, 0] if head == "pair-cls" else (hidden * real).sum(1) / real.sum(1)
        by_hand = model.classifier(model.head(pooled))
    assert (batch["attention_mask"] == 0).any(), "padding must not count"
    torch.testing.assert_close(logits, by_hand, atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_a_saved_head_loads_with_the_same_logits_and_an_interrupted_one_ends_where_it_did(
    toy: Toy, train: Train, tmp_path: Path, toy_encoder: Encoder, parts: dict[str, Any]
) -> None:
    at_once, in_two = tmp_path / "at-once", tmp_path / "in-two"
    model = train(toy.recipe(at_once, TWO_EPOCHS, **parts)).eval()
    batch = batch_for(parts["head"], toy_encoder)
    torch.manual_seed(4)  # a classifier that is drawn anew would be another
    base, adapter = (str(toy.base), at_once) if "dora" in parts else (str(at_once), None)
    again = load_with_adapter(base, adapter, head=parts["head"])
    HeadAtPlaces(plain(again), mean=parts["head"] == "pair-mean")
    loaded = read(parts["head"], again, batch)[1]
    torch.testing.assert_close(loaded, read(parts["head"], model, batch)[1], atol=1e-6, rtol=0)

    in_two.mkdir()
    shutil.copytree(at_once / "checkpoint-14", in_two / "checkpoint-14")
    shutil.copy(at_once / RECIPE_FILE, in_two)
    train_cloze(toy.recipe(in_two, TWO_EPOCHS, **parts), toy.data, resume=True)
    assert min(entry["step"] for entry in read_log(in_two)) > 14, "it did not start over"
    losses = [read_log(folder)[-1]["eval_loss"] for folder in (at_once, in_two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_new_classifier_learns_beside_frozen_layers_and_adapters(toy: Toy, tmp_path: Path) -> None:
    adapted = learning_model(toy.recipe(tmp_path, head="pair-mean", frozen_layers=2, dora=Dora(rank=2, alpha=2)))
    learning = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if "lora_" not in name} == {
        f"base_model.model.classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")
    }
    frozen = learning_model(toy.recipe(tmp_path, head="pair-mean", frozen_layers=2))
    still = {name.split(".")[1] for name, p in frozen.named_parameters() if not p.requires_grad}
    assert still == {"embeddings", "layers"}
    assert frozen.classifier.weight.requires_grad


def test_lora_is_dora_without_magnitudes(toy: Toy, tmp_path: Path) -> None:
    names = {
        magnitude: {
            name
            for name, _ in learning_model(
                toy.recipe(tmp_path, dora=Dora(rank=2, alpha=2, magnitude=magnitude))
            ).named_parameters()
        }
        for magnitude in (True, False)
    }
    assert names[False] < names[True]
    assert all("magnitude" in name for name in names[True] - names[False])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["cloze", "pair-cls"])
def test_consistency_term_lowers_the_swap_disagreement(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: HeadKind
) -> None:
    z: dict[float, np.ndarray] = {}

    def spy(prediction: EvalPrediction) -> dict[str, float]:
        z[weight] = prediction.predictions
        return preference_metrics(prediction)

    monkeypatch.setattr(cloze, "preference_metrics", spy)
    for weight in (0.0, 0.1):
        recipe = toy.recipe(tmp_path / str(weight), LEARNS, head=head, loss="labels", consistency_weight=weight)
        train_cloze(recipe, toy.data, resume=False)
    apart = {weight: np.square(both.sum(axis=1)).mean() for weight, both in z.items()}
    assert apart[0.1] < apart[0.0] / 5
    assert all(((both * [1, -1]) > 0).all() for both in z.values()), "it learned the preference with and without"


@pytest.mark.parametrize("head", ONE_BY_ONE)
def test_options_of_orders_are_refused_for_heads_of_single_responses(toy: Toy, tmp_path: Path, head: HeadKind) -> None:
    with pytest.raises(ValidationError, match=f"head: {head} .* is consistent; remove consistency_weight"):
        toy.recipe(tmp_path, head=head, consistency_weight=0.5)
    with pytest.raises(ValidationError, match=f"head: {head} .* remove `orders`"):
        toy.recipe(tmp_path, head=head, orders="coin")


def test_consistency_needs_both_orders(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="needs orders: both"):
        toy.recipe(tmp_path, orders="coin", consistency_weight=0.5)


@pytest.mark.slow
def test_a_pair_head_learns_from_one_order_which_is_right_by_a_coin(toy: Toy, tmp_path: Path) -> None:
    train_cloze(toy.recipe(tmp_path, LEARNS, head="pair-mean", orders="coin"), toy.data, resume=False)
    assert read_log(tmp_path)[-1]["eval_accuracy_one_order"] > 0.95


def test_a_mean_pool_is_refused_where_the_family_has_none(tmp_path: Path) -> None:
    tiny = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForMaskedLM(tiny).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="pool the first token only"):
        load_head("pair-mean", str(tmp_path))
    assert load_head("pair-cls", str(tmp_path)).num_labels == 2


def test_a_head_does_not_continue_from_another_head(toy: Toy, tmp_path: Path) -> None:
    train_cloze(toy.recipe(tmp_path / "pair", head="pair-cls"), toy.data, resume=False)
    for head in ("pointwise", "cloze"):
        recipe = toy.recipe(tmp_path / "next", head=head, model=str(tmp_path / "pair"))
        with pytest.raises(InvalidInput, match=f"trained with head: pair-cls, and head: {head} cannot start"):
            train_cloze(recipe, toy.data, resume=False)
    train_cloze(toy.recipe(tmp_path / "same", head="pair-cls", model=str(tmp_path / "pair")), toy.data, resume=False)


def test_a_head_is_not_loaded_as_a_masked_lm(toy: Toy, tmp_path: Path) -> None:
    train_cloze(toy.recipe(tmp_path, head="tokens"), toy.data, resume=False)
    with pytest.raises(InvalidInput, match="is a ModernBertForTokenClassification, not a masked LM"):
        load_masked_lm(str(tmp_path))


@pytest.mark.parametrize("field", [{"head": "tokens"}, {"consistency_weight": 0.1}, {"orders": "coin"}], ids=str)
def test_a_student_learns_nothing_but_its_teachers_preference(toy: Toy, tmp_path: Path, field: dict[str, Any]) -> None:
    teachers = {"general": {"path": str(toy.base)}}
    fields = toy.recipe(tmp_path).model_dump() | {"task": "distil", "teachers": teachers} | field
    with pytest.raises(ValidationError, match=r"use head: pointwise|remove consistency_weight|remove `orders`"):
        DistilRecipe.model_validate(fields)


def test_a_head_continues_from_a_cloze_model(toy: Toy, tmp_path: Path) -> None:
    train_cloze(toy.recipe(tmp_path / "cloze"), toy.data, resume=False)
    train_cloze(toy.recipe(tmp_path / "head", head="tokens", model=str(tmp_path / "cloze")), toy.data, resume=False)
    assert (tmp_path / "head" / "model.safetensors").is_file()
