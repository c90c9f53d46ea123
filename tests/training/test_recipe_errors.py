"""Test that a recipe's mistakes are lines that somebody can act on: key, expectation, example, nearest key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyrm.errors import InvalidInput
from training.loading import load_recipe, recipe_names, to_recipe

CLOZE = {
    "task": "cloze",
    "output_dir": "runs/mine",
    "model": "base",
    "spec": {"max_tokens": 512},
    "sources": [{"dataset": "file", "path": "pairs.jsonl"}],
    "optimization": {"peak_lr": 1e-4},
}
PRETRAIN = {
    "task": "pretrain",
    "output_dir": "runs/base",
    "tokenizer": "runs/tokenizer",
    "model": "base",
    "texts": [],
    "optimization": {"peak_lr": 1e-4},
}
JARGON = ("tagged-union", "function-", "Recipe", "Extra inputs", "Field required", "Input should", "[", "NewModel")


def lines(values: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidInput) as refused:
        to_recipe(values, "my.yaml")
    found = str(refused.value).splitlines()
    assert all(line.startswith("my.yaml: ") for line in found)
    return [line.removeprefix("my.yaml: ") for line in found]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            CLOZE | {"optimization": {"peak_lr": 1e-4, "peak_rl": 1}},
            ["`optimization.peak_rl` is not a key of a recipe; did you mean `peak_lr`?"],
        ),
        (
            CLOZE | {"optimization": {"peak_lr": float("inf"), "epochs": 1e300}},
            [
                "`optimization.peak_lr` must be a finite number, not inf; for example peak_lr: 1.0e-4",
                "`optimization.epochs` must be at most 1000000.0, not 1e+300; for example epochs: 1.0",
            ],
        ),
        (
            CLOZE | {"optimization": {"peak_lr": 1e-4, "seed": -1, "betas": [0.9, 1], "eps": -1, "max_steps": -2}},
            [
                "`optimization.betas.1` must be below 1.0, not 1",
                "`optimization.eps` must be at least 0.0, not -1; for example eps: 1e-06",
                "`optimization.max_steps` must be at least -1, not -2; for example max_steps: -1",
                "`optimization.seed` must be at least 0, not -1; for example seed: 17",
            ],
        ),
        (
            {key: value for key, value in CLOZE.items() if key != "spec"},
            [
                "`spec` is missing: What the model reads: token budget and instructions; for example "
                "spec: {max_tokens: 2048}"
            ],
        ),
        (
            CLOZE | {"optimization": {"peak_lr": "fast", "batch_size": 1.5, "micro_batch_size": 0}},
            [
                "`optimization.peak_lr` must be a number, not 'fast'; for example peak_lr: 1.0e-4",
                "`optimization.batch_size` must be a whole number, not 1.5; for example batch_size: 256",
                "`optimization.micro_batch_size` must be above 0, not 0; for example micro_batch_size: 32",
            ],
        ),
        (
            CLOZE | {"head": "pintwise"},
            [
                "`head` must be 'cloze', 'pair-cls', 'pair-mean', 'pointwise', 'set' or 'tokens', not 'pintwise'; "
                "did you mean pointwise?"
            ],
        ),
        (CLOZE | {"spec": {"domains": {"general": 3}}}, ["`spec.domains.general` must be a text, not 3"]),
        (CLOZE | {"dora": {"rnk": 3}}, ["`dora.rnk` is not a key of a recipe; did you mean `rank`?"]),
        (CLOZE | {"sources": [{"dataset": "file"}]}, ["`sources.0`: dataset file needs a path"]),
        (
            CLOZE | {"optimization": {"peak_lr": 1, "batch_size": 8, "micro_batch_size": 3}},
            ["`optimization`: micro_batch_size=3 must divide batch_size=8"],
        ),
        (
            CLOZE | {"prefixes": {"chat": ["Choose."]}},
            ["prefixes of 'chat', which is not a domain of the spec: ['general']"],
        ),
        # Branches of a union: what a person wrote decides which one is meant.
        (PRETRAIN | {"model": 5}, ["`model` must be a mapping of keys to values or must be a text, not 5"]),
        (
            PRETRAIN
            | {"model": {"num_hidden_layers": 2, "hiden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}},
            [
                "`model.hidden_size` is missing: a whole number",
                "`model.hiden_size` is not a key of a recipe; did you mean `hidden_size`?",
            ],
        ),
        (
            CLOZE | {"task": "distil", "teachers": {"chat": {"path": "x", "bse": "y"}}},
            ["`teachers.chat.0.bse` is not a key of a recipe; did you mean `base`?"],
        ),
        (
            CLOZE | {"task": "clozee"},
            [
                "`task` must be one of tokenizer, pretrain, cloze, sft, distil, merge, not 'clozee'; for example "
                "task: cloze"
            ],
        ),
    ],
)
def test_each_mistake_is_one_line(values: dict[str, Any], expected: list[str]) -> None:
    assert lines(values) == expected


@pytest.mark.parametrize("key", sorted(CLOZE))
@pytest.mark.parametrize("value", [None, 5, [5], {"x": 5}, "x", True])
def test_no_mistake_is_in_pydantics_words(key: str, value: Any) -> None:
    try:
        to_recipe(CLOZE | {key: value}, "my.yaml")
    except InvalidInput as refused:
        for line in str(refused).splitlines():
            said = line.partition(", not ")[0].partition("; for example")[0]
            assert not any(word in said for word in JARGON), line


def test_a_key_that_resembles_none_is_answered_with_all(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(CLOZE | {"zzz": 1}))
    with pytest.raises(InvalidInput, match=r"`zzz` is not a key of a recipe; the keys here are .*, max_responses, "):
        load_recipe(tmp_path / "my.yaml")


def test_the_shipped_ground_is_a_recipe_by_name() -> None:
    assert "finetune" in recipe_names()
