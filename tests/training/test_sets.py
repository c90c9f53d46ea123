"""Test that a model of sets learns from pairs and groups by Plackett and Luce, and is loaded as it was trained."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from tests.conftest import spread
from tests.training.conftest import BETTER, WORSE, Toy, read_log, toy_pairs
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidInput
from tinyrm.manifest import SetReading, head_of_training
from tinyrm.modernbert.heads import load_head
from tinyrm.modernbert.sets import ModernBertForSets
from tinyrm.negatives import Pool
from tinyrm.pairs import PreferencePair
from training.data.groups import Group, groups_of, with_distractors
from training.model.losses import plackett_luce
from training.model.specialists import TrainedModel
from training.model.teachers import TrainedTeacher
from training.recipe import ClozeRecipe, DistilRecipe, Specialist
from training.stages.cloze import train_cloze

LEARNS = {"peak_lr": 1e-2, "max_steps": 60, "batch_size": 8, "micro_batch_size": 8, "warmup_ratio": 0.1}
LAST = {"others": "tokens", "layers": 1}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "parts",
    [
        {"sets": LAST},
        pytest.param({"sets": {"others": "none", "read_at": "mean"}}, marks=SLOW),
        pytest.param({"sets": {"others": "masks"}, "dora": {"rank": 2, "alpha": 2}}, marks=SLOW),
    ],
    ids=str,
)
def test_a_model_of_sets_learns_the_toy_preference_and_scores_as_it_was_trained(
    toy: Toy, tmp_path: Path, parts: dict[str, Any]
) -> None:
    train_cloze(toy.recipe(tmp_path, LEARNS, head="set", **parts), toy.data, resume=False)
    last = read_log(tmp_path)[-1]
    assert last["eval_accuracy"] > 0.95
    assert (last["eval_swap_consistency"], last["eval_first_position_margin"]) == (1.0, 0.0)
    reading = SetReading(**parts["sets"])
    assert (head_of_training(tmp_path).sets, head_of_training(tmp_path).read_at) == (reading, reading.read_at)
    teacher = TrainedTeacher(TrainedModel(Specialist(path=str(tmp_path))))
    pairs = toy_pairs(64)
    margins = teacher.margins(pairs, [teacher.instruction(pair.domain or "") for pair in pairs])
    assert np.mean(margins > 0) > 0.95
    a, b, c = (" ".join([word] * n) for word, n in ((BETTER, 2), (WORSE, 2), (WORSE, 1)))
    scorer = teacher._scorer
    one, other = scorer.score([Comparison("Question 1", a, b), Comparison("Question 1", b, a)], domain="general")
    assert one.margin == pytest.approx(-other.margin, abs=1e-5)
    assert scorer.score([Comparison("Question 1", a, c)], domain="general")[0].margin > 0


def test_a_bert_learns_the_cloze_with_its_head_at_the_mask_only(
    toy: Toy, tmp_path: Path, train: Callable[[ClozeRecipe], nn.Module]
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    base = BertForMaskedLM(BertConfig(vocab_size=600, max_position_embeddings=128, pad_token_id=3, **sizes))
    spread(base)
    base.save_pretrained(tmp_path / "base")
    for file in toy.base.glob("*token*"):
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    read: list[tuple[int, ...]] = []
    recipe = toy.recipe(tmp_path / "run", model=str(tmp_path / "base"), frozen_layers=1)
    model = train(recipe).eval()
    model.cls.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))  # type: ignore[union-attr]
    ids = torch.tensor([[1, 9, 4, 2], [1, 4, 9, 2]])
    outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.where(ids == 4, 7, -100))
    assert (outputs.logits.shape, read) == ((2, 600), [(2, 1, 32)]), "one token of each row"
    saved = BertForMaskedLM.from_pretrained(tmp_path / "run").eval()
    torch.testing.assert_close(outputs.logits, saved(ids).logits[ids == 4], atol=1e-5, rtol=0)
    assert not saved.cls.predictions.bias.equal(base.cls.predictions.bias), "and it has learnt"
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad  # type: ignore[union-attr]


def test_the_loss_is_that_of_plackett_and_luce() -> None:
    scores = torch.tensor([[1.0, 0.5, -0.3, 0.2], [2.0, -1.0, 0.0, 0.0]])
    is_worse = torch.zeros(2, 4, 4, dtype=torch.bool)
    order = (0, 3, 1, 2)  # a complete ranking of the first group; the second is a pair beside padding
    for better, i in enumerate(order):
        is_worse[0, i, list(order[better + 1 :])] = True
    is_worse[1, 1, 0] = True
    s = scores[0].tolist()
    chosen_in_turn = [
        -(s[i] - math.log(sum(math.exp(s[j]) for j in order[place:]))) for place, i in enumerate(order[:-1])
    ]
    bradley_terry = math.log1p(math.exp(2.0 - -1.0))
    expected = (sum(chosen_in_turn) / 3 + bradley_terry) / 2
    assert float(plackett_luce(scores, is_worse)) == pytest.approx(expected, abs=1e-6)
    scores.requires_grad_()
    plackett_luce(scores, is_worse).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad[1, 2:].tolist() == [0, 0], "padding learns nothing"


def test_groups_hold_every_pair_once_and_no_more_responses_than_allowed() -> None:
    texts = ["best", "good", "fair", "poor", "bad"]
    ranked = [
        PreferencePair(prompt="p", chosen=a, rejected=b, domain="chat")
        for i, a in enumerate(texts)
        for b in texts[i + 1 :]
    ]
    pairs = [*ranked, PreferencePair(prompt="p", chosen="x", rejected="y", domain="safety"), *toy_pairs(3)]
    for most in (2, 3, 5, 8):
        groups = groups_of(pairs, most, seed=1)
        held = [
            (group.prompt, group.domain, group.responses[i], group.responses[j])
            for group in groups
            for i, others in enumerate(group.worse)
            for j in others
        ]
        assert sorted(held) == sorted((p.prompt, p.domain, p.chosen, p.rejected) for p in pairs)
        assert max(len(group.responses) for group in groups) == min(most, 5)
        assert all(len(set(group.responses)) == len(group.responses) == len(group.worse) for group in groups)
    assert groups_of(pairs, 5, seed=1) == groups_of(pairs, 5, seed=1)


def test_a_model_learns_from_groups(toy: Toy, tmp_path: Path) -> None:
    pairs = [
        PreferencePair(prompt=f"Question {i}", chosen=a, rejected=b, domain="general")
        for i in range(32)
        for a, b in pairwise([f"{BETTER} {BETTER}", f"{BETTER} {WORSE}", f"{WORSE} {WORSE}"])
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    assert {len(group.responses) for group in groups_of(pairs, 4, 17)} == {3}
    recipe = toy.recipe(tmp_path / "run", LEARNS, head="set", sets=LAST, max_responses=4)
    train_cloze(recipe, tmp_path, resume=False)
    assert read_log(tmp_path / "run")[-1]["eval_accuracy"] > 0.95


def test_distractors_are_worse_than_a_better_response_and_than_no_other() -> None:
    pairs = [
        PreferencePair(prompt=f"What is {i} and {i}?", chosen=f"It is {2 * i}, as a sum.", rejected=f"It is {i}.")
        for i in range(20)
    ]
    pairs.append(PreferencePair(prompt=pairs[0].prompt, chosen=pairs[0].chosen, rejected="Who knows such a sum?"))
    groups = with_distractors(groups_of(pairs, 2, seed=1), Pool(pairs), 3, seed=1)
    assert {len(group.responses) for group in groups} == {5}
    assert all(group.worse == ((1, 2, 3, 4), (), (), (), ()) for group in groups)
    assert all(len({*group.responses}) == 5 for group in groups)
    assert "Who knows such a sum?" in groups[0].responses, "another response to the same prompt"
    assert groups == with_distractors(groups_of(pairs, 2, seed=1), Pool(pairs), 3, seed=1)


@pytest.mark.slow
def test_a_model_learns_that_distractors_are_worse(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path, LEARNS, head="set", sets=LAST, distractors=2)
    train_cloze(recipe, toy.data, resume=False)
    teacher = TrainedTeacher(TrainedModel(Specialist(path=str(tmp_path))))
    empty = [Comparison(pair.prompt, pair.chosen, "") for pair in toy_pairs(64)]
    margins = np.array([preference.margin for preference in teacher._scorer.score(empty, domain="general")])
    assert np.mean(margins > 0) > 0.95


def test_a_pair_is_a_group_of_two() -> None:
    (pair,) = toy_pairs(1)
    assert groups_of([pair], 2, 0) == [Group.of_pair(pair)]
    assert Group.of_pair(pair).worse == ((1,), ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head": "set"}, "head: set needs `sets`"),
        ({"sets": LAST}, "no other head has it"),
        ({"distractors": 2}, "remove max_responses and distractors"),
        ({"head": "pointwise", "max_responses": 4}, "remove max_responses and distractors"),
        ({"head": "set", "sets": LAST, "orders": "coin"}, "has no order"),
        ({"head": "set", "sets": LAST, "consistency_weight": 0.1}, "is consistent"),
        ({"head": "set", "sets": {"others": "some"}}, "tokens"),
    ],
)
def test_a_recipe_of_sets_states_what_responses_see(
    toy: Toy, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        toy.recipe(tmp_path, **changes)


def test_a_teacher_does_not_teach_sets(toy: Toy, tmp_path: Path) -> None:
    recipe = toy.recipe(tmp_path, head="set", sets=LAST).model_dump() | {"task": "distil", "teachers": [{"path": "x"}]}
    with pytest.raises(ValidationError, match="does not learn from teachers"):
        DistilRecipe.model_validate(recipe)


def test_a_model_that_has_not_learnt_sets_is_not_read_as_one(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has not learnt to read sets"):
        load_head("set", str(toy.base))
    train_cloze(toy.recipe(tmp_path, head="set", sets=LAST), toy.data, resume=False)
    again = load_head("set", str(tmp_path))
    assert isinstance(again, ModernBertForSets)
    with pytest.raises(InvalidInput, match="was trained with head: set, and head: pointwise cannot start from it"):
        train_cloze(toy.recipe(tmp_path / "other", model=str(tmp_path), head="pointwise"), toy.data, resume=False)
