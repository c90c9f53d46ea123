"""Test valid and invalid recipes; a refusal names the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tinyrm.errors import InvalidInput
from tinyrm.template import ANSWER_COLON
from training.loading import find_recipe, load_recipe, recipe_names
from training.recipe import AnyRecipe, ClozeRecipe, Optimization

RECIPES = [find_recipe(name) for name in recipe_names()]
CLOZE = {
    "task": "cloze",
    "output_dir": "out",
    "model": "base",
    "spec": {},
    "sources": [{"dataset": "jsonl", "path": "pairs.jsonl"}],
    "optimization": {"peak_lr": 1e-4},
}


def load(folder: Path, recipe: dict[str, Any]) -> AnyRecipe:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "recipe.yaml")


def test_there_are_recipes_to_check() -> None:
    assert len(RECIPES) >= 32


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).task in ("tokenizer", "pretrain", "cloze", "sft", "distil", "merge")


def test_a_minimal_recipe_takes_the_papers_optimizer(tmp_path: Path) -> None:
    optimization = load(tmp_path, CLOZE).optimization
    assert (optimization.weight_decay, optimization.betas, optimization.eps) == (1e-5, (0.9, 0.98), 1e-6)
    assert (optimization.warmup_ratio, optimization.floor_ratio, optimization.batch_size) == (0.06, 0.02, 256)


@pytest.mark.parametrize(
    ("section", "key"), [(None, "learning_rate"), ("optimization", "lr"), ("spec", "prompt"), ("dora", "target")]
)
def test_an_unknown_key_is_refused_by_name(tmp_path: Path, section: str | None, key: str) -> None:
    inner = CLOZE.get(section, {}) if section else CLOZE
    recipe = CLOZE | {section: {**inner, key: 1}} if section else CLOZE | {key: 1}
    with pytest.raises(InvalidInput, match=rf"`(\w+\.)?{key}` is not a key of a recipe; "):
        load(tmp_path, recipe)


def test_an_unknown_task_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="one of tokenizer, pretrain, cloze, sft, distil, merge, not 'reward'"):
        load(tmp_path, CLOZE | {"task": "reward"})


def test_micro_batch_must_divide_the_batch() -> None:
    with pytest.raises(ValidationError, match="micro_batch_size=3 must divide batch_size=8"):
        Optimization(peak_lr=1e-4, batch_size=8, micro_batch_size=3)


def test_an_odd_micro_batch_is_refused_because_it_separates_orders(tmp_path: Path) -> None:
    optimization = {"peak_lr": 1e-4, "batch_size": 6, "micro_batch_size": 3}
    with pytest.raises(InvalidInput, match="micro_batch_size must be even"):
        load(tmp_path, CLOZE | {"optimization": optimization})


def test_one_order_may_come_in_odd_numbers(tmp_path: Path) -> None:
    optimization = {"peak_lr": 1e-4, "batch_size": 6, "micro_batch_size": 3}
    recipe = load(tmp_path, CLOZE | {"optimization": optimization, "orders": "coin"})
    assert isinstance(recipe, ClozeRecipe)
    assert recipe.rows_per_pair == 1


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [({"chess": ["Choose."]}, "prefixes of 'chess'"), ({"general": []}, "no prefixes for 'general'")],
)
def test_prefixes_of_no_domain_and_empty_pools_are_refused(
    tmp_path: Path, prefixes: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        load(tmp_path, CLOZE | {"prefixes": prefixes})


def test_a_template_may_be_given_by_name(tmp_path: Path) -> None:
    recipe = load(tmp_path, CLOZE | {"spec": {"template": "answer-colon"}})
    assert isinstance(recipe, ClozeRecipe)
    assert recipe.spec.template == ANSWER_COLON
    for name in ("figure3", "chatml"):
        with pytest.raises(InvalidInput, match=f"no template '{name}'; available: answer-colon, figure2"):
            load(tmp_path, CLOZE | {"spec": {"template": name}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("held_out_fraction", 0),
        ("held_out_fraction", 0.5),
        ("default_instruction_rate", 1.1),
        ("frozen_layers", -1),
        ("balance", 1.5),
        ("coin_pairs", 0),
        ("sources", []),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"`{key}` must "):
        load(tmp_path, CLOZE | {key: value})


def test_a_recipe_survives_its_record(tmp_path: Path) -> None:
    recipe = load(tmp_path, CLOZE | {"dora": {"rank": 8, "alpha": 16}})
    assert ClozeRecipe.model_validate_json(recipe.model_dump_json()) == recipe
