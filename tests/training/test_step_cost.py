"""Compare the counted cost of a step with a real step of the trainer: operations, and what is kept for the backward."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from tests.training.conftest import Toy
from tinyrm.errors import InvalidInput
from tinyrm.modernbert.checkpoint import read_config
from training.experiments import hardware
from training.experiments.hardware import HARDWARE, Work, chosen, duration, fits, micro_batches
from training.experiments.step_cost import counted_attention, kept_tensors, step_cost, whole
from training.recipe import ClozeRecipe, Dora
from training.stages import cloze

DORA, LORA = Dora(rank=4, alpha=4), Dora(rank=4, alpha=4, magnitude=False)
SET = {"head": "set", "sets": {"others": "none"}}
# Each trains a step, for seconds. The first ones differ most.
CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "fp32"),
    (SET, "bf16"),
]
MORE_CASES: list[tuple[dict[str, Any], str]] = [
    ({"dora": DORA, "frozen_layers": 2}, "bf16"),
    ({}, "bf16"),
    ({"frozen_layers": 2}, "fp32"),
    ({"frozen_layers": 2, "freeze_embeddings": False}, "bf16"),
    ({"dora": LORA}, "fp32"),
    ({"head": "pair-mean"}, "fp32"),
    ({"head": "pointwise"}, "bf16"),
    ({"head": "tokens"}, "fp32"),
    ({"padding_free": True}, "fp32"),
    ({"attention": "eager"}, "fp32"),
    (SET | {"sets": {"others": "tokens"}}, "fp32"),
]
MORE_BERTS: list[dict[str, Any]] = [{"attention_dropout": 0.0}, {"head": "pointwise"}, {"dora": LORA}]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=3, hidden_size=32, num_attention_heads=2, intermediate_size=48
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Step(NamedTuple):
    """forward, training: operations. kept: bytes. size: rows of the batch, and tokens of a row in the mean."""

    forward: int
    training: int
    kept: int
    size: tuple[int, float]


class Measured(Exception):
    """Ends a run after its first batch."""


def measure_a_real_step(recipe: ClozeRecipe, data: Path, monkeypatch: pytest.MonkeyPatch) -> "Step":
    """Return what the trainer's own first step costs."""
    found: list[Step] = []

    def step(trainer: Any, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        model.train()
        kept: dict[int | None, int] = {}
        half = recipe.optimization.precision == "bf16"
        with FlopCounterMode(display=False, custom_mapping=counted_attention()) as counter:
            with kept_tensors(model, kept), torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = trainer.compute_loss(model, inputs)
            forward = counter.get_total_flops()
            loss.backward()
        # Rows that stand one behind the other differ in length.
        rows = len(inputs["places"]) if "places" in inputs else len(inputs["input_ids"])
        size = (rows, inputs["input_ids"].numel() / rows)
        found.append(Step(forward, counter.get_total_flops(), sum(kept.values()), size))
        raise Measured

    with monkeypatch.context() as patch:
        patch.setattr(cloze.ClozeTrainer, "training_step", step)
        with pytest.raises(Measured):
            cloze.train_cloze(recipe, data, resume=False)
    return found[0]


@pytest.mark.parametrize(
    ("changes", "precision"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES)], ids=str
)
def test_a_step_costs_what_is_counted(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], precision: str
) -> None:
    """The loss and the batch keep some more, which does not grow with the model."""
    recipe = toy.recipe(tmp_path, {"precision": precision}, **changes)
    real = measure_a_real_step(recipe, toy.data, monkeypatch)
    cost = step_cost(recipe, read_config(recipe.model, Path(recipe.model)), on_cpu=True)
    assert real.size[0] == recipe.optimization.micro_batch_size
    assert cost.operations(*real.size, backward=False) == pytest.approx(real.forward, rel=0.01)
    assert cost.operations(*real.size) == pytest.approx(real.training, rel=0.01)
    assert cost.kept_bytes(*real.size) == pytest.approx(real.kept, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, *MORE_BERTS], ids=str)
def test_a_bert_costs_what_is_counted(
    toy: Toy, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    recipe = toy.recipe(tmp_path, model=str(bert), **changes)
    real = measure_a_real_step(recipe, toy.data, monkeypatch)
    config = AutoConfig.from_pretrained(bert)
    cost = step_cost(recipe, config, on_cpu=True)
    assert cost.operations(*real.size) == pytest.approx(real.training, rel=0.01)
    assert cost.kept_bytes(*real.size) == pytest.approx(real.kept, rel=0.05)
    if not changes:
        assert step_cost(recipe, config).kept(8, 256) < 0.7 * cost.kept(8, 256), "a GPU's kernel keeps no matrix"


def test_checkpointing_keeps_inputs_and_one_layer(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path, {"micro_batch_size": 2})
    cost = step_cost(recipe, read_config(recipe.model, Path(recipe.model)))
    rows, tokens = 2, 500
    model = whole(cloze.learning_model(recipe)).train()
    model.set_attn_implementation("sdpa")
    kept: dict[int | None, int] = {}
    ids = torch.full((rows, tokens), 9)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = 7
    is_text = torch.ones_like(ids)
    is_text[0, -1] = 0
    with kept_tensors(model, kept):
        model(input_ids=ids, attention_mask=is_text, labels=labels)
    by_layer = [value for number, value in kept.items() if number is not None]
    assert cost.layers == len(by_layer) == 4
    inputs = 4 * rows * tokens * 32 * 4
    without = cost.memory(0, 0)
    checkpointed = cost.memory(rows, tokens, checkpointing=True) - without
    assert checkpointed == pytest.approx(kept[None] + inputs + max(by_layer), rel=0.05)
    assert checkpointed < 0.6 * (cost.memory(rows, tokens) - without)


def test_weights_gradients_and_moments_are_counted(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path, dora=LORA)
    cost = step_cost(recipe, read_config(recipe.model, Path(recipe.model)))
    model = cloze.learning_model(recipe)
    weights = sum(p.numel() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    one = cost.memory(1, 100)
    assert one - cost.kept(1, 100) == 4 * weights + 12 * learning
    assert cost.memory(1, 100, sharing="DDP") - one == 4 * learning
    gathered = 2 * 4 * cost.largest_layer
    sharded = cost.memory(1, 100, sharing="FSDP", devices=8) - cost.kept(1, 100)
    assert sharded == (4 * weights + 12 * learning) // 8 + gathered


def test_the_largest_micro_batch_fits_and_the_next_does_not(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path, {"batch_size": 48, "micro_batch_size": 48})
    assert micro_batches(recipe, 1) == [48, 24, 16, 12, 8, 6, 4, 2], "both orders of a pair are in one batch"
    assert micro_batches(recipe, 8) == [6, 2]
    cost = step_cost(recipe, read_config(recipe.model, Path(recipe.model)))
    (laptop,) = chosen(("laptop",), None)
    work = Work(longest=120, training=3e12, recomputed=1e12, evaluation=1e12)

    def on(gib: float) -> hardware.Fit:
        (fit,) = fits(replace(laptop, gib=gib), recipe, cost, work)
        return fit

    exact = cost.memory(16, 120) / hardware.GIB / hardware.USABLE_SHARE
    found, less = on(exact * 1.0001), on(exact * 0.9999)
    assert (found.micro_batch, less.micro_batch) == (16, 12)
    assert not found.fits
    assert found.gib == cost.memory(48, 120) / hardware.GIB
    assert found.hours == pytest.approx(4e12 / laptop.rate(recipe) / 3600)
    checkpointed = on(cost.memory(2, 120, checkpointing=True) / hardware.GIB / hardware.USABLE_SHARE * 1.0001)
    assert (checkpointed.micro_batch, checkpointed.with_checkpointing) == (None, 2)
    assert checkpointed.hours == pytest.approx(5e12 / laptop.rate(recipe) / 3600), "layers are computed twice"
    nothing = on(1e-6)
    assert (nothing.micro_batch, nothing.with_checkpointing, nothing.hours, nothing.dollars) == (None,) * 4


def test_a_price_of_ones_own_is_of_one_hardware() -> None:
    assert chosen((), None) == HARDWARE
    (given,) = chosen(("h100",), 2.0)
    assert (given.name, given.dollars) == ("h100", 2.0)
    with pytest.raises(InvalidInput, match="'h1000' is not known; known: laptop, rtx4090"):
        chosen(("h1000",), None)
    for names in ((), ("h100", "l4")):
        with pytest.raises(InvalidInput, match="price of one --hardware"):
            chosen(names, 2.0)


@pytest.mark.parametrize(
    ("hours", "text"),
    [(1 / 3600, "1 s"), (0.3 / 60, "18 s"), (0.25, "15 min"), (3.41, "3.4 h"), (120, "5.0 days")],
)
def test_a_duration_has_a_unit_that_fits(hours: float, text: str) -> None:
    assert duration(hours) == text


def test_every_price_has_a_source() -> None:
    assert len({each.name for each in HARDWARE}) == len(HARDWARE)
    assert all(each.source and each.dollars >= 0 and each.bf16 >= each.fp32 for each in HARDWARE)
