"""Test that probabilities, ties and weights are learnt by every head, and that plain verdicts are learnt as before."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedTokenizerFast, set_seed

from tests.conftest import Trained
from tests.training.conftest import Toy, read_log, toy_pairs
from tinyrm.encoding import Encoder
from tinyrm.errors import InvalidInput
from tinyrm.negatives import Pool
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.spec import HELD_OUT_FILE, HeadKind
from training.arguments import training_arguments
from training.data.groups import Group, GroupCollator, GroupDataset, PairLabel, groups_of, with_distractors
from training.data.negatives import made_pairs
from training.data.soft import SoftPairs, has_labels, normalised
from training.model.heads import readout, run_model
from training.model.losses import group_loss, soft_cross_entropy
from training.recipe import ClozeRecipe, DistilRecipe
from training.stages.cloze import (
    ClozeTrainer,
    Shown,
    labelled_metrics,
    learning_model,
    preference_metrics,
    show,
    train_cloze,
)
from training.stages.distil import train_distil

# A head, and for the cloze its loss.
WAYS: dict[str, tuple[HeadKind, str]] = {
    "cloze, labels": ("cloze", "labels"),
    "cloze, vocabulary": ("cloze", "vocabulary"),
    "pair-cls": ("pair-cls", "labels"),
    "pair-mean": ("pair-mean", "labels"),
    "pointwise": ("pointwise", "labels"),
    "tokens": ("tokens", "labels"),
    "set": ("set", "labels"),
}
LABELS = [{"probability": 0.75}, {"margin": 1.5, "weight": 3.0}, {"probability": 0.5}, {"weight": 0.5}]
LEARNS = {"peak_lr": 1e-2, "max_steps": 60, "batch_size": 16, "micro_batch_size": 16, "warmup_ratio": 0.1}


def labelled(count: int) -> list[PreferencePair]:
    return [pair.model_copy(update=LABELS[i % len(LABELS)]) for i, pair in enumerate(toy_pairs(count))]


def recipe_for(toy: Toy, out: Path, head: HeadKind, loss: str = "labels", **changes: Any) -> ClozeRecipe:
    sets = {"sets": {"others": "none"}} if head == "set" else {}
    return toy.recipe(out, head=head, loss=loss, **sets, **changes)


@pytest.fixture
def wild(toy: Toy, trained: Trained, tmp_path: Path) -> Callable[..., ClozeRecipe]:
    """Return recipes on a base of large weights: with its initial weights, every row would be a tie."""
    return lambda head, loss: recipe_for(toy, tmp_path, head, loss, model=str(trained.base))


@pytest.fixture
def shown(tokenizer: PreTrainedTokenizerFast, toy_encoder: Encoder) -> Callable[..., Shown]:
    def of(recipe: ClozeRecipe, learn: list[PreferencePair], held_out: list[PreferencePair] | None = None) -> Shown:
        backend = tokenizer.backend_tokenizer
        return show(recipe, learn, held_out or toy_pairs(2), Pool(learn), encoder=toy_encoder, tokenizer=backend)

    return of


def trainer_of(recipe: ClozeRecipe, encoder: Encoder) -> ClozeTrainer:
    set_seed(1)  # new heads are drawn at random
    model = learning_model(recipe).eval()
    if hasattr(model, "classifier"):
        model.classifier.weight.data *= 50  # scores that differ
    return ClozeTrainer(
        label_ids=encoder.label_ids,
        label_loss=recipe.loss == "labels",
        read=None if recipe.head == "cloze" else readout(recipe.head),
        recipe=recipe,
        model=model,
        args=training_arguments(recipe, sequences_per_item=recipe.rows_per_pair),
        eval_dataset=[],
    )


def batch_of(shown: Shown) -> dict[str, Tensor]:
    return shown.collator([shown.learn[i] for i in range(len(shown.learn))])  # type: ignore[misc]


def by_hand(head: HeadKind, outputs: Tensor, batch: dict[str, Tensor], pairs: list[PreferencePair]) -> float:
    """Return the loss by its formula from what the model gives for each row: the logits of the labels, or scores."""
    weights = np.array([pair.weight for pair in pairs]) / np.mean([pair.weight for pair in pairs])
    targets = [pair.target for pair in pairs]
    total = 0.0
    values = outputs.double().detach()
    if head == "tokens":
        places = batch["places"].tolist()
        for row, own in enumerate(values.squeeze(-1).split(places)):
            p = targets[row // 2] if row % 2 == 0 else 1 - targets[row // 2]
            terms = [-(p * math.log(1 / (1 + math.exp(-v))) + (1 - p) * math.log(1 / (1 + math.exp(v)))) for v in own]
            total += weights[row // 2] * sum(terms) / len(terms) / len(places)
        return float(total)
    if head in ("pointwise", "set"):
        differences = [float(one - other) for one, other in values.reshape(-1, 2).tolist()]
        log_q = [(-math.log1p(math.exp(-d)), -math.log1p(math.exp(d))) for d in differences]
        return float(
            np.mean([-w * (p * a + (1 - p) * b) for w, p, (a, b) in zip(weights, targets, log_q, strict=True)])
        )
    for row, (first, second) in enumerate(values.tolist()):
        p = targets[row // 2] if row % 2 == 0 else 1 - targets[row // 2]
        total += -weights[row // 2] * (p * first + (1 - p) * second) / len(values)
    return float(total)


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_of_each_head_is_its_formula(
    wild: Callable[..., ClozeRecipe], shown: Callable[..., Shown], toy_encoder: Encoder, way: str
) -> None:
    head, loss = WAYS[way]
    pairs, recipe = labelled(4), wild(head, loss)
    trainer, batch = trainer_of(recipe, toy_encoder), batch_of(shown(recipe, pairs))
    with torch.no_grad():
        found, logits = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        outputs = run_model(trainer.model, batch)
    if head in ("cloze", "pair-cls", "pair-mean"):
        whole = outputs if loss == "vocabulary" else logits
        log_q = whole.log_softmax(dim=1)
        outputs = log_q[:, list(toy_encoder.label_ids)] if loss == "vocabulary" else log_q
    assert found.item() == pytest.approx(by_hand(head, outputs, batch, pairs), abs=1e-5)
    plain = batch_of(shown(recipe, toy_pairs(4)))
    with torch.no_grad():
        assert found.item() != pytest.approx(trainer.compute_loss(trainer.model, plain).item(), abs=1e-3)


def frozen_loss(head: HeadKind, loss: str, logits: Tensor, batch: dict[str, Tensor], label_ids: list[int]) -> Tensor:
    """Return the loss of plain verdicts as it was before pairs had probabilities."""
    second = batch.get("is_second", torch.empty(0)).long()
    if head == "set":
        scores, is_worse = logits.float(), batch["is_worse"]
        among = is_worse | torch.eye(scores.shape[1], dtype=torch.bool)
        rivals = scores[:, None, :].expand(among.shape).masked_fill(~among, -torch.inf)
        terms, counts = rivals.logsumexp(dim=2) - scores, is_worse.any(dim=2)
        return ((terms * counts).sum(dim=1) / counts.sum(dim=1)).mean()
    if head == "tokens":
        scores, places = logits.squeeze(-1), batch["places"]
        is_chosen = (~batch["is_second"]).float().repeat_interleave(places)
        wrong = nn.functional.binary_cross_entropy_with_logits(scores.float(), is_chosen, reduction="none")
        return torch.segment_reduce(wrong, "mean", lengths=places, axis=0).mean()
    if head == "pointwise":
        scores = logits.squeeze(-1)
        return nn.functional.cross_entropy(torch.stack([scores, scores.view(-1, 2).flip(1).reshape(-1)], dim=1), second)
    if (head, loss) == ("cloze", "vocabulary"):
        return nn.functional.cross_entropy(logits, torch.tensor(label_ids)[second])
    return nn.functional.cross_entropy(logits[:, label_ids] if head == "cloze" else logits, second)


@pytest.mark.parametrize("way", WAYS)
def test_plain_verdicts_have_the_batches_and_the_loss_of_before_bit_for_bit(
    wild: Callable[..., ClozeRecipe], shown: Callable[..., Shown], toy_encoder: Encoder, way: str
) -> None:
    head, loss = WAYS[way]
    recipe = wild(head, loss)
    certain = [pair.model_copy(update={"weight": 1.0}) for pair in toy_pairs(6)]
    trainer, batch = trainer_of(recipe, toy_encoder), batch_of(shown(recipe, certain))
    own = {"is_worse"} if head == "set" else {"is_second", "read_at", "places"}
    assert batch.keys() == {"input_ids", "attention_mask"} | own
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, dict(batch))
        logits = run_model(trainer.model, batch)
    expected = frozen_loss(head, loss, logits, batch, list(toy_encoder.label_ids))
    assert found.dtype == expected.dtype
    assert found.equal(expected)
    soft = [pair.model_copy(update={"probability": 1.0}) for pair in certain]
    with torch.no_grad():
        again = trainer.compute_loss(trainer.model, batch_of(shown(recipe, soft)))
    assert again.item() == pytest.approx(found.item(), rel=1e-5), "a probability of 1 is a verdict"


def test_one_order_of_a_pair_has_its_own_target(
    wild: Callable[..., ClozeRecipe], shown: Callable[..., Shown], toy_encoder: Encoder
) -> None:
    recipe = wild("cloze", "labels").model_copy(update={"orders": "coin"})
    pairs = labelled(8)
    batch = batch_of(shown(recipe, pairs))
    assert len(batch["targets"]) == 8
    assert 0 < batch["is_second"].sum() < 8
    targets = [1 - p.target if second else p.target for p, second in zip(pairs, batch["is_second"], strict=True)]
    assert batch["targets"].tolist() == pytest.approx(targets)
    weights = [pair.weight for pair in pairs]
    assert batch["weights"].tolist() == pytest.approx([weight / np.mean(weights) for weight in weights])
    trainer = trainer_of(recipe, toy_encoder)
    with torch.no_grad():
        found, logits = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    log_q = logits.log_softmax(dim=1)
    rows = [w * (p * a + (1 - p) * b) for w, p, (a, b) in zip(batch["weights"], targets, log_q, strict=True)]
    assert found.item() == pytest.approx(-float(sum(rows)) / 8, abs=1e-6)


@pytest.mark.parametrize("way", ["cloze, labels", "tokens", "set"])
def test_the_mean_over_micro_batches_is_the_weighted_mean_over_all(
    wild: Callable[..., ClozeRecipe], shown: Callable[..., Shown], toy_encoder: Encoder, way: str
) -> None:
    """Micro batches of one pair: a batch that divided by its own weights would level them out."""
    recipe = wild(*WAYS[way])
    of_pairs = shown(recipe, labelled(8))
    trainer = trainer_of(recipe, toy_encoder)

    def loss(places: range) -> Tensor:
        batch: Any = of_pairs.collator([of_pairs.learn[i] for i in places])  # type: ignore[misc]
        found: Tensor = trainer.compute_loss(trainer.model, batch)
        return found

    with torch.no_grad():
        whole = loss(range(8))
        parts = torch.stack([loss(range(i, i + 1)) for i in range(8)])
    assert parts.mean().item() == pytest.approx(whole.item(), rel=1e-4)
    assert parts.std() > 0.05


def test_soft_cross_entropy_with_weights_by_hand() -> None:
    log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    found = soft_cross_entropy(log_q, torch.tensor([0.8, 0.3]), torch.tensor([0.5, 1.5]))
    by_hand = -(0.5 * (0.8 * math.log(0.9) + 0.2 * math.log(0.1)) + 1.5 * math.log(0.5)) / 2
    assert found.item() == pytest.approx(by_hand, rel=1e-6)


def test_weights_have_a_mean_of_one() -> None:
    assert normalised([1.0, 3.0]) == [0.5, 1.5]
    assert normalised([]) == []
    assert has_labels([*toy_pairs(3), *labelled(4)[3:]])
    assert not has_labels(toy_pairs(3))


def pair(chosen: str, rejected: str, **label: Any) -> PreferencePair:
    return PreferencePair(prompt="p", chosen=chosen, rejected=rejected, **label)


def test_a_group_with_a_probability_has_pairwise_terms_and_others_that_of_plackett_and_luce() -> None:
    (soft,) = groups_of([pair("a", "b", probability=0.75), pair("a", "c"), pair("b", "c", probability=0.5)], 4, 0)
    (plain,) = groups_of([pair("a", "b"), pair("a", "c")], 4, 0)
    assert plain.labels == ()
    assert set(soft.labels) == {
        PairLabel(soft.responses.index(one), soft.responses.index(other), target, 1.0)
        for one, other, target in (("a", "b", 0.75), ("a", "c", 1.0), ("b", "c", 0.5))
    }
    inputs = {"is_worse": torch.zeros(2, 3, 3, dtype=torch.bool), "targets": torch.zeros(2, 3, 3)}
    inputs["weights"] = torch.zeros(2, 3, 3)
    for better, other, target, weight in soft.labels:
        inputs["targets"][0, better, other], inputs["weights"][0, better, other] = target, weight
    inputs["is_worse"][1, 0, 1] = inputs["is_worse"][1, 0, 2] = True
    scores = {"a": 1.0, "b": -0.5, "c": 0.25}
    table = torch.tensor([[scores[text] for text in soft.responses], [1.0, 0.5, -2.0]], requires_grad=True)

    def term(one: str, other: str, p: float) -> float:
        d = scores[one] - scores[other]
        return p * math.log1p(math.exp(-d)) + (1 - p) * math.log1p(math.exp(d))

    of_soft = (term("a", "b", 0.75) + term("a", "c", 1.0) + term("b", "c", 0.5)) / 3
    of_plain = math.log(math.e**1.0 + math.e**0.5 + math.e**-2.0) - 1.0
    found = group_loss(table, inputs)
    assert found.item() == pytest.approx((of_soft + of_plain) / 2, abs=1e-6)
    found.backward()  # type: ignore[no-untyped-call]
    assert table.grad is not None
    assert table.grad.isfinite().all()


def test_a_tie_alone_in_its_group_pulls_both_scores_together() -> None:
    (tie,) = groups_of([pair("a", "b", probability=0.5)], 2, 0)
    assert (tie.worse, tie.labels) == (((), ()), (PairLabel(0, 1, 0.5, 1.0),))
    inputs = {
        "is_worse": torch.zeros(1, 2, 2, dtype=torch.bool),
        "targets": torch.tensor([[[0, 0.5], [0, 0]]]),
        "weights": torch.tensor([[[0.0, 1.0], [0, 0]]]),
    }
    scores = torch.tensor([[2.0, 0.0]], requires_grad=True)
    group_loss(scores, inputs).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad[0, 0] > 0 > scores.grad[0, 1]


def test_weights_of_groups_have_a_mean_of_one_over_groups() -> None:
    pairs = [pair("a", "b", weight=4.0), pair("a", "c"), pair("b", "c")]
    other = PreferencePair(prompt="q", chosen="a", rejected="b", weight=6.0)
    groups = groups_of([*pairs, other], 4, 0)
    means = [np.mean([label.weight for label in group.labels]) for group in groups]
    assert np.mean(means) == pytest.approx(1)
    assert means[1] / means[0] == pytest.approx(3), "2 and 6"
    assert [len(group.labels) for group in groups] == [3, 1], "plain verdicts among weighted pairs are labels too"


def test_distractors_are_certainly_worse_and_a_tie_has_none() -> None:
    groups = groups_of([*labelled(2), pair("tied", "equal", probability=0.5)], 2, 0)
    larger = with_distractors(groups, Pool(toy_pairs(9)), 2, 0)
    assert [len(group.responses) for group in larger] == [4, 4, 2]
    first, second = larger[0].labels, larger[1].labels
    assert first == (groups[0].labels[0], PairLabel(0, 2, 1.0, first[0].weight), PairLabel(0, 3, 1.0, first[0].weight))
    assert [label.target for label in second][1:] == [1.0, 1.0]


def test_no_bad_response_is_made_up_for_a_tie() -> None:
    pairs = [
        p.model_copy(update={"probability": 0.5} if i % 2 else {"weight": 2.0}) for i, p in enumerate(toy_pairs(8))
    ]
    made = made_pairs(Pool(pairs), 12, {"keyboard_mash": 1.0}, 0)
    assert {each.prompt for each in made} == {p.prompt for p in pairs[::2]}
    assert {(each.target, each.weight) for each in made} == {(1.0, 2.0)}, "certain, with the weight of its pair"
    assert Pool([pair("a", "b", probability=0.5), pair("b", "c")]).worse(pair("a", "d")) == []
    with pytest.raises(InvalidInput, match="applies to any of the pairs"):
        made_pairs(Pool(pairs[1::2]), 1, {"keyboard_mash": 1.0}, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metrics_of_plain_verdicts_are_those_of_before_bit_for_bit(dtype: Any) -> None:
    z = np.random.default_rng(0).normal(size=(501, 2)).astype(dtype)
    z[0] = 1.0  # a tie of the model
    first, second = z.T
    assert preference_metrics(EvalPrediction(predictions=z, label_ids=np.zeros(501))) == {
        "accuracy": float(np.mean(np.heaviside(first - second, 0.5))),
        "accuracy_one_order": float(np.mean(np.heaviside(np.array([first, -second]), 0.5))),
        "nll": float(np.mean(np.logaddexp(0, (second - first) / 2))),
        "swap_consistency": float(np.mean(first * second <= 0)),
        "first_position_margin": float(np.mean((first + second) / 2)),
    }


def test_metrics_of_probabilities_by_hand() -> None:
    # Right; wrong; a tie of the data; right, and less sure than the label.
    z = np.array([[2.0, -1.0], [-1.0, 2.0], [3.0, -1.0], [0.5, -0.5]])
    targets = np.array([0.75, 1.0, 0.5, 0.9])
    found = labelled_metrics(EvalPrediction(predictions=z, label_ids=targets))
    margins = (1.5, -1.5, 2.0, 0.5)
    terms = [
        p * math.log1p(math.exp(-m)) + (1 - p) * math.log1p(math.exp(m)) for p, m in zip(targets, margins, strict=True)
    ]
    assert found["accuracy"] == found["accuracy_one_order"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(sum(terms) / 4)
    assert found["ties"] == 1
    verdicts = labelled_metrics(EvalPrediction(predictions=z, label_ids=np.ones(4)))
    plain = preference_metrics(EvalPrediction(predictions=z, label_ids=np.zeros(4)))
    assert verdicts == {**plain, "ties": 0}


@pytest.mark.parametrize("head", ["cloze", "pointwise", "set"])
def test_the_whole_chain_learns_a_probability_and_not_the_verdict(toy: Toy, tmp_path: Path, head: HeadKind) -> None:
    """Learn 0.7 for every pair, the better response being easy to see: a verdict would be learnt as 1."""
    pairs = [p.model_copy(update={"probability": 0.7}) for p in toy_pairs(64)]
    (tmp_path / "pairs.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    changes = {"eval_steps": 30}
    soft = recipe_for(toy, tmp_path / "soft", head)
    metrics = train_cloze(with_steps(soft, LEARNS | changes), tmp_path, resume=False)
    assert metrics["eval_accuracy"] > 0.95
    # By Pinsker, an excess of 0.01 leaves the mean distance to 0.7 below 0.071.
    assert metrics["eval_nll"] == pytest.approx(entropy, abs=0.01)
    assert metrics["eval_loss"] == pytest.approx(entropy, abs=0.02)
    held_out = read_pairs(tmp_path / "soft" / HELD_OUT_FILE)
    assert held_out
    assert {pair.probability for pair in held_out} == {0.7}
    assert [entry["eval_ties"] for entry in read_log(tmp_path / "soft") if "eval_ties" in entry][-1] == 0


def with_steps(recipe: ClozeRecipe, steps: dict[str, Any]) -> ClozeRecipe:
    fields = recipe.model_dump()
    return ClozeRecipe.model_validate(fields | {"optimization": fields["optimization"] | steps})


def test_held_out_ties_are_counted_and_ties_alone_are_refused(toy: Toy, tmp_path: Path) -> None:
    pairs = [p.model_copy(update={"probability": 0.5} if i % 2 else {}) for i, p in enumerate(toy_pairs(64))]
    (tmp_path / "pairs.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    metrics = train_cloze(toy.recipe(tmp_path / "mixed"), tmp_path, resume=False)
    held_out = read_pairs(tmp_path / "mixed" / HELD_OUT_FILE, ties=True)
    assert metrics["eval_ties"] == sum(pair.is_tie for pair in held_out) > 0
    assert len(read_pairs(tmp_path / "mixed" / HELD_OUT_FILE)) == len(held_out) - metrics["eval_ties"]
    (tmp_path / "pairs.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs[1::2]))
    with pytest.raises(InvalidInput, match="held-out pairs are ties, on which nothing is right"):
        train_cloze(toy.recipe(tmp_path / "ties"), tmp_path, resume=False)


def test_a_teacher_is_mixed_with_the_probabilities_of_the_data(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [
        p.model_copy(update={"probability": 0.5} if i % 4 == 0 else {"weight": 2.0})
        for i, p in enumerate(toy_pairs(64))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    given = [p.model_dump() | {"probability": 0.9, "weight": None} for p in toy_pairs(64)]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(record) + "\n" for record in given))
    fields = toy.recipe(tmp_path / "out", loss="labels").model_dump()
    fields |= {"task": "distil", "teachers": [{"path": str(tmp_path / "given.jsonl")}], "hard_rate": 0.25}
    seen: list[tuple[float, float]] = []

    class Kept(SoftPairs):
        def __init__(self, dataset: Any, targets: Any = None) -> None:
            super().__init__(dataset, targets)
            seen.extend((p.target, t) for p, t in zip(dataset.pairs, self._targets, strict=True))

    monkeypatch.setattr("training.stages.distil.SoftPairs", Kept)
    monkeypatch.setattr("training.stages.cloze.SoftPairs", Kept)
    metrics = train_distil(DistilRecipe.model_validate(fields), tmp_path, resume=False)
    mixed = {(own, round(target, 6)) for own, target in seen if own != target}
    assert mixed == {(1.0, 0.925), (0.5, 0.8)}
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert metrics["eval_teacher_agreement"] >= 0


def test_the_collator_of_groups_gives_held_out_verdicts_the_probability_one(
    toy_encoder: Encoder, shown: Callable[..., Shown], toy: Toy, tmp_path: Path
) -> None:
    learn = shown(recipe_for(toy, tmp_path, "set"), labelled(4), [toy_pairs(1)[0], *labelled(3)[2:]])
    assert isinstance(learn.held_out, GroupDataset)
    assert isinstance(learn.collator, GroupCollator)
    batch = learn.collator([learn.held_out[i] for i in range(2)])
    assert sorted(batch["targets"][:, 0, 1].tolist()) == [0.5, 1.0]
    assert Group.of_pair(toy_pairs(1)[0]).labels == ()
