"""Training with made-up bad responses: their share, where they come from, and what is left alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from tests.support.preference_data import chat_pairs, preference_pairs, safety_pairs
from tests.training.conftest import Toy, toy_pairs
from tinyrm.errors import InvalidInput
from tinyrm.negatives import WEIGHTS, MadePair, Pool
from tinyrm.pairs import PreferencePair
from tinyrm.spec import HELD_OUT_FILE, RUN_FILE, HeadKind
from training.data.collate import PairDataset
from training.data.negatives import kinds_of, made_pairs
from training.data.split import split_by_prompt
from training.experiments.dry_run import describe_data
from training.experiments.plan import plan
from training.recipe import ClozeRecipe, DistilRecipe, Negatives
from training.stages import cloze, distil
from training.stages.cloze import train_cloze
from training.stages.distil import train_distil


@pytest.mark.parametrize(("share", "pairs", "made"), [(0.2, 80, 20), (0.5, 7, 7), (0.75, 10, 30), (0.01, 10, 0)])
def test_the_share_is_of_the_pairs_shown(share: float, pairs: int, made: int) -> None:
    assert Negatives(share=share).beside(pairs) == made


@pytest.mark.parametrize("negatives", [{"share": 1}, {"share": 0}, {"share": 0.2, "kinds": {"empty": 0}}])
def test_a_share_or_kinds_that_cannot_be_are_refused(negatives: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"share|no kind of negatives has a weight"):
        Negatives.model_validate(negatives)
    with pytest.raises(ValidationError, match=r"kinds\.emtpy\.\[key\]"):
        Negatives.model_validate({"share": 0.1, "kinds": {"emtpy": 1}})


def test_made_pairs_follow_from_the_seed_and_repeat_no_text() -> None:
    pairs = preference_pairs()
    made = made_pairs(Pool(pairs), 3 * len(pairs), WEIGHTS, seed=4)
    assert made == made_pairs(Pool(pairs), 3 * len(pairs), WEIGHTS, seed=4)
    assert made != made_pairs(Pool(pairs), 3 * len(pairs), WEIGHTS, seed=5)
    assert len(made) == 3 * len(pairs)
    assert sum(kinds_of(made).values()) == len(made)
    originals = {(pair.prompt, pair.chosen, pair.domain, pair.subset) for pair in pairs}
    assert {(pair.prompt, pair.chosen, pair.domain, pair.subset) for pair in made} == originals
    for turn in range(3):
        prompts = [pair.prompt for pair in made[turn * len(pairs) : (turn + 1) * len(pairs)]]
        assert len(set(prompts)) == len(pairs), "each pair once before any is drawn again"
    texts = [pair.rejected for pair in made if pair.kind == "keyboard_mash"]
    assert len(set(texts)) == len(texts) > 1


def test_a_kind_that_applies_to_few_pairs_is_made_of_these_and_one_that_applies_to_none_is_refused() -> None:
    pairs = [*chat_pairs(), safety_pairs()[0]]
    made = made_pairs(Pool(pairs), 5, {"compliance": 1}, seed=0)
    assert [pair.prompt for pair in made] == [pairs[-1].prompt] * 5
    with pytest.raises(InvalidInput, match="none of the kinds compliance applies"):
        made_pairs(Pool(chat_pairs()), 5, {"compliance": 1}, seed=0)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[PreferencePair]]:
    """Note the pairs that a run shows: those to learn from, and those held out."""
    seen: dict[str, list[PreferencePair]] = {}
    show = cloze.show

    def note(
        recipe: ClozeRecipe, learn: list[PreferencePair], held_out: list[PreferencePair], *others: Any, **named: Any
    ) -> cloze.Shown:
        seen.update(learn=learn, held_out=held_out)
        datasets = show(recipe, learn, held_out, *others, **named)
        assert len(datasets.learn) == len(learn)
        assert len(datasets.held_out) == len(held_out)
        return datasets

    monkeypatch.setattr(cloze, "show", note)
    return seen


HEADS: tuple[HeadKind, ...] = ("cloze", "pointwise", "tokens", "set")


@pytest.mark.parametrize("head", HEADS)
def test_a_run_shows_made_pairs_beside_its_own_and_holds_none_out(
    toy: Toy, tmp_path: Path, shown: dict[str, list[PreferencePair]], head: HeadKind
) -> None:
    pairs = preference_pairs()
    (tmp_path / "pairs.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in pairs), encoding="utf-8")
    out, kinds = tmp_path / "out", {"empty": 1, "off_topic": 2}
    own = {"sets": {"others": "none"}} if head == "set" else {}
    recipe = toy.recipe(out, head=head, negatives={"share": 0.25, "kinds": kinds}, new_head=head != "cloze", **own)
    train_cloze(recipe, tmp_path, resume=False)
    learn, held_out = split_by_prompt(pairs, recipe.held_out_fraction, recipe.optimization.seed)
    assert shown["learn"][: len(learn)] == learn
    made = shown["learn"][len(learn) :]
    assert len(made) == round(len(learn) / 3)
    assert {pair.kind for pair in made if isinstance(pair, MadePair)} == kinds.keys()
    assert shown["held_out"] == held_out
    assert not any(isinstance(pair, MadePair) for pair in held_out)
    # Nothing of a held-out pair is learned from.
    assert {pair.prompt for pair in made} <= {pair.prompt for pair in learn}
    off_topic = {pair.rejected for pair in made if isinstance(pair, MadePair) and pair.kind == "off_topic"}
    assert off_topic <= {pair.chosen for pair in learn}
    lines = (out / HELD_OUT_FILE).read_text(encoding="utf-8").splitlines()
    assert [PreferencePair.model_validate_json(line) for line in lines] == held_out
    record = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    assert record["negatives"] == kinds_of(made)
    assert record["recipe"]["negatives"] == {"share": 0.25, "kinds": kinds}


def test_a_run_with_other_negatives_is_another_run(toy: Toy, tmp_path: Path) -> None:
    train_cloze(toy.recipe(tmp_path, negatives={"share": 0.2}), toy.data, resume=False)
    with pytest.raises(InvalidInput, match="another recipe"):
        train_cloze(toy.recipe(tmp_path, negatives={"share": 0.3}), toy.data, resume=True)


def test_teachers_are_not_asked_about_made_pairs(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[[ClozeRecipe], nn.Module]
) -> None:
    asked: list[PreferencePair] = []
    targets: list[list[float]] = []

    class Seen(distil.SoftPairs):
        def __init__(self, pairs: PairDataset, own: list[float]) -> None:
            targets.append(own)
            super().__init__(pairs, own)

    def answer(pairs: list[PreferencePair], recipe: DistilRecipe) -> list[float]:
        asked.extend(pairs)
        return [0.25] * len(pairs)

    monkeypatch.setattr(distil, "SoftPairs", Seen)
    monkeypatch.setattr(distil, "teacher_probabilities", answer)
    (tmp_path / "given.jsonl").write_text(toy_pairs(1)[0].model_dump_json())
    own = toy.recipe(tmp_path / "out", negatives={"share": 0.2}).model_dump()
    recipe = DistilRecipe.model_validate(
        own | {"task": "distil", "teachers": [{"path": str(tmp_path / "given.jsonl")}]}
    )
    train_distil(recipe, toy.data, resume=False)
    learn, held_out = split_by_prompt(toy_pairs(64), recipe.held_out_fraction, recipe.optimization.seed)
    assert len(asked) == 64
    assert not any(isinstance(pair, MadePair) for pair in asked)
    assert targets == [[0.25] * len(learn) + [1.0] * round(len(learn) / 4), [0.25] * len(held_out)]


def test_a_plan_counts_made_pairs(toy: Toy, tmp_path: Path) -> None:
    bare, with_made = (
        plan(toy.recipe(tmp_path, {"max_steps": -1, "epochs": 1}, **changes), toy.data)
        for changes in ({}, {"negatives": {"share": 0.5}})
    )
    assert with_made.rows == 2 * bare.rows
    assert with_made.steps == -(-with_made.rows // 8)
    made = sum(with_made.learned_pairs.values())
    assert f"made-up bad responses beside them: {made} pairs, 50% of all" in describe_data(with_made, toy.data)
