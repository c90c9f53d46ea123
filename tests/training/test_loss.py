"""Test both losses against the dense model, and the metrics against arithmetic by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import EvalPrediction

from tests.conftest import Trained
from tests.training.conftest import Toy
from tinyrm.encoding import Encoder, Encoding, SpecialTokens
from tinyrm.modernbert.checkpoint import load_masked_lm
from training.arguments import training_arguments
from training.data.collate import RowCollator
from training.model.losses import two_way_loss
from training.recipe import ClozeRecipe
from training.stages.cloze import ClozeTrainer, learning_model, preference_metrics


@pytest.fixture(scope="module")
def batch(encoded: list[tuple[Encoding, ...]], toy_encoder: Encoder, special: SpecialTokens) -> dict[str, Tensor]:
    return RowCollator(special.pad, special.mask)(encoded)


@pytest.fixture
def wild(toy: Toy, trained: Trained, tmp_path: Path) -> ClozeRecipe:
    """Return a recipe on a base of large weights: with its initial weights, every row would be a tie."""
    return toy.recipe(tmp_path, model=str(trained.base))


def trainer(recipe: ClozeRecipe, label_ids: tuple[int, int]) -> ClozeTrainer:
    return ClozeTrainer(
        label_ids=label_ids,
        label_loss=recipe.loss == "labels",
        recipe=recipe,
        model=learning_model(recipe).eval(),
        args=training_arguments(recipe, sequences_per_item=2),
        eval_dataset=[],
    )


def dense_log_probabilities(recipe: ClozeRecipe, batch: dict[str, Tensor], columns: list[int], mask_id: int) -> Tensor:
    """Return [rows, columns] at the mask, from the whole vocabulary's logits at every position."""
    model = load_masked_lm(recipe.model).eval()
    with torch.no_grad():
        logits = model(batch["input_ids"], batch["attention_mask"]).logits[batch["input_ids"] == mask_id]
    return logits[:, columns].log_softmax(dim=1)


def test_label_loss_is_cross_entropy_of_the_two_labels(
    wild: ClozeRecipe, batch: dict[str, Tensor], toy_encoder: Encoder
) -> None:
    ours = trainer(wild.model_copy(update={"loss": "labels"}), toy_encoder.label_ids)
    log_p = dense_log_probabilities(wild, batch, list(toy_encoder.label_ids), toy_encoder.special.mask)
    by_hand = -sum(float(row[i % 2]) for i, row in enumerate(log_p)) / len(log_p)
    assert ours.compute_loss(ours.model, batch).item() == pytest.approx(by_hand, abs=1e-5)
    assert abs(by_hand - math.log(2)) > 0.01


def test_label_loss_of_one_order_uses_the_right_label(
    wild: ClozeRecipe, encoded: list[tuple[Encoding, ...]], toy_encoder: Encoder, special: SpecialTokens
) -> None:
    """Use a batch of chosen-second rows only: code that expects alternating rows gets half of them wrong."""
    ours = trainer(wild.model_copy(update={"loss": "labels"}), toy_encoder.label_ids)
    collate = RowCollator(special.pad, special.mask)
    rows = collate([(None, second) for _, second in encoded])
    log_p = dense_log_probabilities(wild, rows, list(toy_encoder.label_ids), toy_encoder.special.mask)
    by_hand = -float(log_p[:, 1].mean())
    assert ours.compute_loss(ours.model, rows).item() == pytest.approx(by_hand, abs=1e-5)


def test_vocabulary_loss_is_cross_entropy_of_all_words_at_the_mask(
    wild: ClozeRecipe, batch: dict[str, Tensor], toy_encoder: Encoder
) -> None:
    ours = trainer(wild, toy_encoder.label_ids)
    log_p = dense_log_probabilities(wild, batch, list(range(ours.model.config.vocab_size)), toy_encoder.special.mask)
    by_hand = -sum(float(row[toy_encoder.label_ids[i % 2]]) for i, row in enumerate(log_p)) / len(log_p)
    assert ours.compute_loss(ours.model, batch).item() == pytest.approx(by_hand, abs=1e-5)


def test_evaluation_step_gives_first_minus_second_for_both_orders(
    wild: ClozeRecipe, batch: dict[str, Tensor], toy_encoder: Encoder
) -> None:
    ours = trainer(wild, toy_encoder.label_ids)
    z = ours.prediction_step(ours.model, batch)[1]
    log_p = dense_log_probabilities(wild, batch, list(toy_encoder.label_ids), toy_encoder.special.mask)
    torch.testing.assert_close(z, (log_p[:, 0] - log_p[:, 1]).view(3, 2), atol=1e-5, rtol=0)


def test_two_way_loss_of_hand_made_logits() -> None:
    # Row 0: the first is right by 2. Row 1: the second is right, but the first leads by 1.
    loss = two_way_loss(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([False, True]))
    assert float(loss) == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2)


def test_metrics_of_hand_made_margins() -> None:
    # Right in both orders; right on balance, yet always the first; wrong in both; wrong on balance, always the second.
    z = np.array([[2.0, -1.0], [3.0, 1.0], [-1.0, 2.0], [-4.0, -1.0]])
    metrics = preference_metrics(EvalPrediction(predictions=z, label_ids=np.zeros(4)))
    assert metrics == {
        "accuracy": 0.5,
        "accuracy_one_order": 4 / 8,
        # Margins of both orders together: 1.5, 1, -1.5, -1.5.
        "nll": pytest.approx(sum(math.log1p(math.exp(-m)) for m in (1.5, 1, -1.5, -1.5)) / 4),
        "swap_consistency": 0.5,
        "first_position_margin": pytest.approx((0.5 + 2 + 0.5 - 2.5) / 4),
    }


def test_a_model_that_always_takes_the_first_is_at_chance_and_not_consistent() -> None:
    metrics = preference_metrics(EvalPrediction(predictions=np.ones((5, 2)), label_ids=np.zeros(5)))
    assert metrics == {
        "accuracy": 0.5,
        "accuracy_one_order": 0.5,
        "nll": pytest.approx(math.log(2)),
        "swap_consistency": 0.0,
        "first_position_margin": 1.0,
    }


def test_a_tie_counts_one_half() -> None:
    # A tie of both orders together; one of the first order alone; right; wrong.
    z = np.array([[2.0, 2.0], [0.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    metrics = preference_metrics(EvalPrediction(predictions=z, label_ids=np.zeros(4)))
    assert metrics["accuracy"] == (0.5 + 1 + 1 + 0) / 4
    assert metrics["accuracy_one_order"] == (1 + 0.5 + 1 + 2 + 0) / 8
    assert metrics["swap_consistency"] == 3 / 4, "a tie contradicts nothing"
