"""Test that a student follows its teachers, each in its own domain, even if they contradict the data."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from tests.training.conftest import Toy, read_log, toy_pairs
from tinyrm.encoding import Encoder, Encoding
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair
from tinyrm.spec import RUN_FILE
from training.data.collate import PairCollator
from training.model.specialists import TrainedModel
from training.recipe import DistilRecipe, Specialist
from training.stages import distil
from training.stages.cloze import train_cloze
from training.stages.distil import (
    SoftCollator,
    SoftPair,
    distil_metrics,
    soft_cross_entropy,
    teacher_probabilities,
    train_distil,
)

STEPS = {"peak_lr": 1e-2, "max_steps": 60, "batch_size": 16, "micro_batch_size": 16, "warmup_ratio": 0.1}


@pytest.fixture(scope="module")
def teachers(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Train `general` on the toy preference and `safety` on its opposite."""
    folder = tmp_path_factory.mktemp("teachers")
    opposite = [p.model_copy(update={"chosen": p.rejected, "rejected": p.chosen}) for p in toy_pairs(64)]
    (folder / "pairs.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in opposite))
    train_cloze(toy.recipe(folder / "general", STEPS, loss="labels"), toy.data, resume=False)
    train_cloze(toy.recipe(folder / "safety", STEPS, loss="labels"), folder, resume=False)
    return {name: {"path": str(folder / name)} for name in ("general", "safety")}


def recipe(toy: Toy, out: Path, teachers: dict[str, Any], **changes: Any) -> DistilRecipe:
    fields = toy.recipe(out, STEPS, loss="labels").model_dump() | {"task": "distil", "teachers": teachers}
    return DistilRecipe.model_validate({**fields, **changes})


def test_teachers_score_their_own_domain_in_the_order_of_the_pairs(
    toy: Toy, tmp_path: Path, teachers: dict[str, Any]
) -> None:
    pairs = toy_pairs(10)
    pairs[4] = pairs[4].model_copy(update={"domain": None})
    found = teacher_probabilities(pairs, recipe(toy, tmp_path, teachers))
    assert [p > 0.5 for p in found] == [i % 2 == 0 for i in range(10)], "safety, the odd ones, learned the opposite"
    softer = teacher_probabilities(pairs, recipe(toy, tmp_path, teachers, teacher_temperature=4.0))
    for sharp, soft in zip(found, softer, strict=True):
        assert math.log(soft / (1 - soft)) == pytest.approx(math.log(sharp / (1 - sharp)) / 4, rel=1e-3)


def test_probabilities_do_not_depend_on_the_number_of_pairs_per_call(
    toy: Toy, tmp_path: Path, teachers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.mkdir()
    twice.mkdir()
    at_once = teacher_probabilities(toy_pairs(10), recipe(toy, once, teachers))
    monkeypatch.setattr("training.stages.distil.PAIRS_AT_ONCE", 2)
    assert teacher_probabilities(toy_pairs(10), recipe(toy, twice, teachers)) == pytest.approx(at_once, abs=1e-5)


def test_teachers_score_a_pair_once_over_all_starts_of_a_run(
    toy: Toy, tmp_path: Path, teachers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[str, int]] = []
    score = distil.score_pairs

    def counted(teacher: TrainedModel, domain: str, pairs: list[PreferencePair], temperature: float) -> list[float]:
        scored.append((domain, len(pairs)))
        return score(teacher, domain, pairs, temperature)

    monkeypatch.setattr(distil, "score_pairs", counted)
    ours = recipe(toy, tmp_path, teachers)
    first = teacher_probabilities(toy_pairs(10), ours)
    assert scored == [("general", 5), ("safety", 5)]
    assert teacher_probabilities(toy_pairs(10), ours) == first
    assert scored == [("general", 5), ("safety", 5)], "all were known"
    teacher_probabilities(toy_pairs(12), ours)
    assert scored[2:] == [("general", 1), ("safety", 1)], "only the new ones"
    other = {"general": teachers["general"], "safety": teachers["general"]}
    teacher_probabilities(toy_pairs(10), recipe(toy, tmp_path, other))
    assert scored[4:] == [("safety", 5)], "by another teacher"
    teacher_probabilities(toy_pairs(10), recipe(toy, tmp_path, teachers, teacher_temperature=2.0))
    assert scored[5:] == [("general", 5), ("safety", 5)], "at another temperature"


def test_a_run_is_not_continued_with_teachers_that_changed(toy: Toy, tmp_path: Path, teachers: dict[str, Any]) -> None:
    own = {name: {"path": str(tmp_path / name)} for name in teachers}
    for name, teacher in teachers.items():
        shutil.copytree(teacher["path"], tmp_path / name)
    short = {**toy.recipe(tmp_path, STEPS).optimization.model_dump(), "max_steps": 1}
    ours = recipe(toy, tmp_path / "out", own, optimization=short)
    train_distil(ours, toy.data, resume=False)
    weights = tmp_path / "safety" / "model.safetensors"
    shutil.copy(tmp_path / "general" / "model.safetensors", weights)
    with pytest.raises(InvalidInput, match="other teachers"):
        train_distil(ours, toy.data, resume=True)


@pytest.mark.parametrize("loss", ["labels", pytest.param("vocabulary", marks=pytest.mark.slow)])
def test_the_student_follows_its_teachers_against_the_labels(
    toy: Toy, tmp_path: Path, teachers: dict[str, Any], loss: str
) -> None:
    # Of the opposite teacher alone: agreement with it is disagreement with every verdict of the data.
    wrong = {"general": teachers["safety"], "safety": teachers["safety"]}
    changes = {"optimization": {**toy.recipe(tmp_path, STEPS).optimization.model_dump(), "eval_steps": 5}}
    if loss == "vocabulary":
        changes["optimization"] |= {"peak_lr": 5e-3, "max_steps": 120}
    metrics = train_distil(recipe(toy, tmp_path, wrong, loss=loss, **changes), toy.data, resume=False)
    losses = [entry["eval_loss"] for entry in read_log(tmp_path) if "eval_loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert metrics["eval_teacher_agreement"] > 0.9
    assert metrics["eval_accuracy"] < 0.1
    record = json.loads((tmp_path / RUN_FILE).read_text())
    teacher = TrainedModel(Specialist(path=teachers["safety"]["path"]))
    assert record["teachers_sha256"] == dict.fromkeys(wrong, teacher.sha256())


@pytest.mark.slow
def test_only_the_label_counts_at_a_hard_rate_of_one(toy: Toy, tmp_path: Path, teachers: dict[str, Any]) -> None:
    wrong = {"general": teachers["safety"], "safety": teachers["safety"]}
    metrics = train_distil(recipe(toy, tmp_path, wrong, hard_rate=1.0), toy.data, resume=False)
    assert metrics["eval_accuracy"] > 0.9


def test_a_domain_without_a_teacher_is_refused(toy: Toy, tmp_path: Path, teachers: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="no teacher for pairs of safety"):
        train_distil(recipe(toy, tmp_path, {"general": teachers["general"]}), toy.data, resume=False)


def test_soft_cross_entropy_by_hand() -> None:
    log_probabilities = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    by_hand = -(0.8 * math.log(0.9) + 0.2 * math.log(0.1) + math.log(0.5)) / 2
    found = soft_cross_entropy(log_probabilities, torch.tensor([0.8, 0.3]))
    assert found.item() == pytest.approx(by_hand, rel=1e-6)


def test_both_orders_of_a_pair_have_opposite_targets(encoded: list[tuple[Encoding, ...]], toy_encoder: Encoder) -> None:
    special = toy_encoder.special
    hard = PairCollator(special.pad, special.mask, toy_encoder.label_ids)
    batch = SoftCollator(hard)([SoftPair(pair, target) for pair, target in zip(encoded, (0.9, 0.2, 0.6), strict=True)])
    torch.testing.assert_close(batch["targets"], torch.tensor([0.9, 0.1, 0.2, 0.8, 0.6, 0.4]))
    assert batch["input_ids"].equal(hard(encoded)["input_ids"])


def test_agreement_is_with_the_teacher_and_not_with_the_label() -> None:
    z = np.array([[2.0, -1.0], [-2.0, 1.0], [-2.0, 1.0]])
    metrics = distil_metrics(EvalPrediction(predictions=z, label_ids=np.array([0.9, 0.1, 0.8])))
    assert metrics["teacher_agreement"] == pytest.approx(2 / 3)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    tie = distil_metrics(EvalPrediction(predictions=np.ones((1, 2)), label_ids=np.array([0.9])))
    assert tie["teacher_agreement"] == 0.5
