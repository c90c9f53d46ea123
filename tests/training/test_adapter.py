"""Test that frozen weights do not change by a bit, and that the others do."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModel

from tests.training.conftest import Toy, weights
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import load_masked_lm
from training.model.adapter import dora_targets, freeze_lowest, set_attention_dropout
from training.recipe import ClozeRecipe, Dora
from training.stages.cloze import learning_model

Train = Callable[[ClozeRecipe], nn.Module]


def moved(toy: Toy, model: nn.Module) -> dict[str, bool]:
    """Return parameter -> whether training changed it."""
    before = weights(load_masked_lm(str(toy.base)))
    return {name: not value.equal(before[name]) for name, value in weights(model).items()}


@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
def test_frozen_layers_and_embeddings_keep_every_bit(toy: Toy, train: Train, tmp_path: Path, loss: str) -> None:
    change = moved(toy, train(toy.recipe(tmp_path, frozen_layers=2, loss=loss)))
    frozen = {name for name in change if re.match(r"model\.(embeddings|layers\.[01])\.", name)}
    assert {name for name, changed in change.items() if not changed} == frozen
    assert {"decoder.bias", "head.dense.weight", "model.layers.2.mlp.Wi.weight"} <= change.keys() - frozen


def test_embeddings_may_learn_below_frozen_layers(toy: Toy, train: Train, tmp_path: Path) -> None:
    change = moved(toy, train(toy.recipe(tmp_path, frozen_layers=2, freeze_embeddings=False)))
    frozen = {name for name in change if re.match(r"model\.layers\.[01]\.", name)}
    assert {name for name, changed in change.items() if not changed} == frozen


@pytest.mark.parametrize("magnitude", [True, False])
def test_without_magnitudes_it_is_lora(toy: Toy, tmp_path: Path, magnitude: bool) -> None:
    model = learning_model(toy.recipe(tmp_path, dora=Dora(rank=2, alpha=2, magnitude=magnitude)))
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("lora_magnitude_vector" in name for name in learning) == magnitude
    assert any("lora_A" in name for name in learning)


def test_no_frozen_layers_means_that_everything_learns(toy: Toy, train: Train, tmp_path: Path) -> None:
    change = moved(toy, train(toy.recipe(tmp_path, frozen_layers=0)))
    assert "model.embeddings.tok_embeddings.weight" in change
    assert all(change.values())


@pytest.mark.parametrize("layers", [4, 5])
def test_freezing_all_layers_is_refused(toy: Toy, tmp_path: Path, layers: int) -> None:
    with pytest.raises(InvalidInput, match=f"frozen_layers={layers} leaves nothing"):
        freeze_lowest(load_masked_lm(str(toy.base)), layers)
    with pytest.raises(InvalidInput, match=f"frozen_layers={layers} leaves nothing"):
        learning_model(toy.recipe(tmp_path, frozen_layers=layers, dora=Dora(rank=2, alpha=2)))


def test_dora_adapts_the_layers_above_and_the_heads_dense_only(toy: Toy, tmp_path: Path) -> None:
    model = learning_model(toy.recipe(tmp_path, frozen_layers=2, dora=Dora(rank=2, alpha=2)))
    adapted = {name for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)}
    linears = ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")
    assert adapted == {f"model.layers.{i}.{linear}" for i in (2, 3) for linear in linears} | {"head.dense"}


def test_dora_training_moves_every_adapter_and_no_base_weight(toy: Toy, train: Train, tmp_path: Path) -> None:
    model = train(toy.recipe(tmp_path, frozen_layers=2, dora=Dora(rank=2, alpha=2)))
    base = weights(load_masked_lm(str(toy.base)))
    after = {name.removeprefix("base_model.model.").replace(".base_layer", ""): p for name, p in weights(model).items()}
    assert base.keys() <= after.keys()
    assert all(after[name].equal(value) for name, value in base.items())
    second_factors = [value for name, value in after.items() if "lora_B" in name]
    assert len(second_factors) == 9
    assert all(value.any() for value in second_factors), "DoRA starts from zero here; a zero has not learned"


def test_the_target_pattern_separates_layer_1_from_layers_10_and_above() -> None:
    pattern = dora_targets(layers=22, frozen_layers=11)
    hit = {i for i in range(30) if re.fullmatch(pattern, f"model.layers.{i}.attn.Wqkv")}
    assert hit == set(range(11, 22))
    assert re.fullmatch(pattern, "head.dense")
    assert not any(re.fullmatch(pattern, name) for name in ("decoder", "head_dense", "model.layers.11.attn_norm"))


@pytest.mark.parametrize("family", ["modernbert", "bert", "roberta", "electra", "deberta-v2"])
def test_attention_dropout_is_set_and_nothing_else_draws(family: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    others = {} if family == "modernbert" else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.1}
    model = AutoModel.from_config(AutoConfig.for_model(family, vocab_size=50, pad_token_id=0, **sizes, **others))
    model.train()
    ids = torch.arange(1, 33).view(1, -1)

    def states() -> torch.Tensor:
        found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return found

    set_attention_dropout(model, 0.5)
    assert not states().equal(states())
    set_attention_dropout(model, 0.0)
    assert states().equal(states())


def test_a_recipe_sets_the_attention_dropout(toy: Toy, tmp_path: Path) -> None:
    model = learning_model(toy.recipe(tmp_path, attention_dropout=0.25))
    assert [layer.attn.attention_dropout for layer in model.base_model.layers] == [0.25] * 4
