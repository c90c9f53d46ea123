"""Test that a student follows its teachers, each in its own domain, even if they contradict the data."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import EvalPrediction

from tests.training.conftest import Toy, read_log, toy_pairs
from tinyrm.bundle import read_manifest
from tinyrm.encoding import Encoder, Encoding
from tinyrm.errors import InvalidInput
from tinyrm.files import open_text
from tinyrm.pairs import PreferencePair
from tinyrm.scorer import Scorer
from tinyrm.spec import RUN_FILE, HeadKind, trained_head
from training.data.collate import RowCollator
from training.data.soft import SoftCollator, SoftPair
from training.model.losses import soft_cross_entropy
from training.model.specialists import TrainedModel
from training.model.teachers import TrainedTeacher
from training.recipe import DistilRecipe, Specialist
from training.stages.cloze import train_cloze
from training.stages.distil import distil_metrics, teacher_probabilities, train_distil

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


def recipe(toy: Toy, out: Path, teachers: dict[str, Any] | list[Any], **changes: Any) -> DistilRecipe:
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


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return a list that gets the prompts of each call of a trained teacher."""
    calls: list[list[str]] = []
    margins = TrainedTeacher.margins

    def counted(teacher: TrainedTeacher, pairs: list[PreferencePair], instructions: list[str]) -> NDArray[np.float64]:
        calls.append([pair.prompt for pair in pairs])
        return margins(teacher, pairs, instructions)

    monkeypatch.setattr(TrainedTeacher, "margins", counted)
    return calls


def test_teachers_score_a_pair_once_over_all_runs_that_share_the_folder(
    toy: Toy, tmp_path: Path, teachers: dict[str, Any], scored: list[list[str]]
) -> None:
    shared = {"targets": tmp_path / "kept"}
    first = teacher_probabilities(toy_pairs(10), recipe(toy, tmp_path / "one", teachers, **shared))
    assert [len(call) for call in scored] == [5, 5]
    second = recipe(toy, tmp_path / "two", teachers, **shared)
    assert teacher_probabilities(toy_pairs(10), second) == first
    assert len(scored) == 2, "all were known"
    teacher_probabilities(toy_pairs(12), second)
    assert sorted(scored[2:]) == [["Question 10"], ["Question 11"]], "only the new ones"
    teacher_probabilities(toy_pairs(10), recipe(toy, tmp_path, teachers, teacher_temperature=2.0, **shared))
    assert len(scored) == 4, "the temperature is applied to what is kept"
    other = {"general": teachers["general"], "safety": teachers["general"]}
    teacher_probabilities(toy_pairs(10), recipe(toy, tmp_path, other, **shared))
    assert [len(call) for call in scored[4:]] == [5], "by another teacher"
    changed = [pair.model_copy(update={"rejected": pair.rejected + "!"}) for pair in toy_pairs(10)]
    teacher_probabilities(changed, recipe(toy, tmp_path, other, **shared))
    assert [len(call) for call in scored[5:]] == [10], "another response is another pair"


def test_an_interrupted_scoring_goes_on_after_its_last_part(
    toy: Toy, tmp_path: Path, teachers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, scored: list[list[str]]
) -> None:
    monkeypatch.setattr("training.stages.distil.PAIRS_AT_ONCE", 4)
    counted = TrainedTeacher.margins

    def stopped(teacher: TrainedTeacher, pairs: list[PreferencePair], instructions: list[str]) -> NDArray[np.float64]:
        if len(scored) == 2:
            raise KeyboardInterrupt
        return counted(teacher, pairs, instructions)

    alone = recipe(toy, tmp_path, [teachers["general"]])
    with monkeypatch.context() as patch:
        patch.setattr(TrainedTeacher, "margins", stopped)
        with pytest.raises(KeyboardInterrupt):
            teacher_probabilities(toy_pairs(10), alone)
    teacher_probabilities(toy_pairs(10), alone)
    assert [len(call) for call in scored] == [4, 4, 2]
    assert len({prompt for call in scored for prompt in call}) == 10


def test_several_teachers_of_a_pair_count_equally(toy: Toy, tmp_path: Path, teachers: dict[str, Any]) -> None:
    pairs = toy_pairs(6)
    one, other, both = (
        np.array(teacher_probabilities(pairs, recipe(toy, tmp_path, chosen)))
        for chosen in ([teachers["general"]], [teachers["safety"]], [*teachers.values()])
    )
    margins = [np.log(p / (1 - p)) for p in (one, other, both)]
    np.testing.assert_allclose(margins[2], (margins[0] + margins[1]) / 2, atol=1e-6)
    assert abs(margins[0] - margins[1]).min() > 1


@pytest.mark.parametrize("head", ["pair-cls", "pointwise"])
def test_a_teacher_may_have_any_head(toy: Toy, tmp_path: Path, head: HeadKind) -> None:
    train_cloze(toy.recipe(tmp_path / "teacher", STEPS, head=head), toy.data, resume=False)
    found = teacher_probabilities(toy_pairs(10), recipe(toy, tmp_path, [{"path": str(tmp_path / "teacher")}]))
    assert min(found) > 0.5
    swapped = [p.model_copy(update={"chosen": p.rejected, "rejected": p.chosen}) for p in toy_pairs(10)]
    again = teacher_probabilities(swapped, recipe(toy, tmp_path, [{"path": str(tmp_path / "teacher")}]))
    assert again == pytest.approx([1 - p for p in found], abs=1e-5)


def test_a_head_that_is_not_exported_does_not_teach(toy: Toy, tmp_path: Path) -> None:
    train_cloze(toy.recipe(tmp_path / "teacher", head="tokens"), toy.data, resume=False)
    with pytest.raises(
        InvalidInput, match="trained with head: tokens; cloze, pair-cls, pair-mean, pointwise, set are read"
    ):
        teacher_probabilities(toy_pairs(2), recipe(toy, tmp_path, [{"path": str(tmp_path / "teacher")}]))


def test_a_bundle_teaches_with_its_own_temperature(toy: Toy, tmp_path: Path, bundle_folder: Path) -> None:
    pairs = toy_pairs(6)
    found = teacher_probabilities(pairs, recipe(toy, tmp_path, [{"path": str(bundle_folder)}]))
    scorer = Scorer.open(bundle_folder)
    names = [pair.domain if pair.domain in scorer.spec.domains else None for pair in pairs]
    served = [scorer.compare(p.prompt, p.chosen, p.rejected, domain=d).p_a for p, d in zip(pairs, names, strict=True)]
    assert found == pytest.approx(served, abs=1e-5)
    assert len(set(found)) > 1
    assert [path.name for path in (tmp_path / "targets").iterdir()] == [read_manifest(bundle_folder).revision]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_file_of_targets_is_a_teacher(toy: Toy, tmp_path: Path, suffix: str) -> None:
    pairs = toy_pairs(4)
    targets: list[dict[str, float]] = [
        {"probability": 0.9},
        {"margin": -2.0},
        {"probability": 1.0},
        {"probability": 0.5},
    ]
    lines = [json.dumps(p.model_dump() | target) + "\n" for p, target in zip(pairs, targets, strict=True)]
    path = tmp_path / f"pairs{suffix}"
    with open_text(path, "wt") as file:
        file.writelines(lines)
    student = recipe(toy, tmp_path, [{"path": str(path)}])
    expected = [0.9, 1 / (1 + math.exp(2)), 1.0, 0.5]
    assert teacher_probabilities(pairs, student) == pytest.approx(expected, abs=2e-6)
    with pytest.raises(InvalidInput, match="has no target for 2 of 6 pairs"):
        teacher_probabilities(toy_pairs(6), student)


@pytest.mark.parametrize("target", [{}, {"probability": 1.5}, {"probability": 0.5, "margin": 0.0}], ids=str)
def test_a_target_that_is_none_is_refused(toy: Toy, tmp_path: Path, target: dict[str, float]) -> None:
    (pair,) = toy_pairs(1)
    (tmp_path / "given.jsonl").write_text(json.dumps(pair.model_dump() | target))
    with pytest.raises(InvalidInput, match=r"given\.jsonl, line 1: "):
        teacher_probabilities([pair], recipe(toy, tmp_path, [{"path": str(tmp_path / "given.jsonl")}]))


def test_a_damaged_part_is_named(toy: Toy, tmp_path: Path, teachers: dict[str, Any]) -> None:
    ours = recipe(toy, tmp_path, [teachers["general"]])
    teacher_probabilities(toy_pairs(2), ours)
    (part,) = (tmp_path / "targets").glob("*/*.jsonl.gz")
    with open_text(part, "wt") as file:
        file.write("3\n")
    with pytest.raises(InvalidInput, match=f"{part.name} is not a file of targets"):
        teacher_probabilities(toy_pairs(2), ours)


@pytest.mark.parametrize("teacher", ["nothing-here", "folder"])
def test_a_path_that_holds_no_teacher_is_refused_before_the_run(toy: Toy, tmp_path: Path, teacher: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInput):
        train_distil(recipe(toy, tmp_path / "out", [{"path": str(tmp_path / teacher)}]), toy.data, resume=False)
    assert not (tmp_path / "out").exists()


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
    path = teachers["safety"]["path"]
    assert record["teachers"] == {path: TrainedModel(Specialist(path=path)).identity()}


@pytest.mark.parametrize("head", ["pointwise", "pair-cls"])
def test_a_student_with_a_head_follows_a_cloze_teacher(
    toy: Toy, tmp_path: Path, teachers: dict[str, Any], head: HeadKind
) -> None:
    student = recipe(toy, tmp_path / "student", [teachers["safety"]], head=head)
    metrics = train_distil(student, toy.data, resume=False)
    assert metrics["eval_teacher_agreement"] > 0.9
    assert metrics["eval_accuracy"] < 0.1, "the teacher learned the opposite"
    assert trained_head(tmp_path / "student") == head
    # A student is a trained model like any other: it can be the next teacher.
    found = teacher_probabilities(toy_pairs(4), recipe(toy, tmp_path, [{"path": str(tmp_path / "student")}]))
    assert max(found) < 0.5


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
    hard = RowCollator(special.pad, special.mask)
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
