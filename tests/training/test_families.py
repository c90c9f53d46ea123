"""Test the shipped recipes with a toy model, toy data and small sizes: each runs to its end and can be resumed."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.training.conftest import Toy, read_log, toy_pairs
from tinyrm.modernbert.checkpoint import load_masked_lm
from tinyrm.spec import RUN_FILE, Spec
from training.data.collate import PairDataset
from training.loading import find_recipe, load_recipe, merge, read_recipe, recipe_names
from training.output import RECIPE_FILE
from training.recipe import ClozeRecipe, DistilRecipe, MergeRecipe, SftRecipe
from training.stages.cloze import ClozeTrainer, train_cloze
from training.stages.distil import train_distil
from training.stages.merge import merge_specialists
from training.stages.sft import train_sft

# One of each kind: frozen, adapted, several domains, and each with every variant's way of showing pairs.
FAMILIES = [
    *(f"{variant}/{row}" for variant in ("paper", "author", "tinyrm") for row in ("large-chat", "large-reasoning")),
    *(f"{variant}/large-all-at-once" for variant in ("paper", "author", "tinyrm")),
    "author/base-safety",
    "author/large-sft-chat",
    "tinyrm/ettin-17m",
]
VARIANTS = ("paper/", "author/", "tinyrm/")
MERGED, DISTILLED = "tinyrm/large-merged", "tinyrm/large-distilled"
DOMAINS = ("chat", "reasoning", "safety")
# Batches of eight; in a run of one order and one domain the sixth step lies in the second epoch.
SIZE = {"batch_size": 8, "micro_batch_size": 4, "max_steps": 8, "save_steps": 6, "precision": "fp32", "epochs": 100}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file of pairs for each domain."""
    folder = tmp_path_factory.mktemp("domains")
    for number, domain in enumerate(DOMAINS):
        pairs = (p.model_copy(update={"prompt": f"{domain}: {p.prompt}"}) for p in toy_pairs(40 + 20 * number))
        (folder / f"{domain}.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    return folder


def toy_sized(name: str, toy: Toy, output_dir: Path, **size: int) -> ClozeRecipe:
    return ClozeRecipe.model_validate(toy_fields(name, toy, output_dir, **size))


def toy_fields(name: str, toy: Toy, output_dir: Path, **size: int) -> dict[str, Any]:
    """Return the recipe with changes only where a laptop needs them."""
    fields = read_recipe(find_recipe(name))
    domains = [domain for domain in DOMAINS if any(s["domain"] == domain for s in fields["sources"])]
    sources = [{"dataset": "jsonl", "path": f"{domain}.jsonl", "domain": domain} for domain in domains]
    changes: dict[str, Any] = {"model": str(toy.base), "sources": sources, "output_dir": str(output_dir)}
    changes |= {
        "optimization": SIZE | size,
        "held_out_fraction": 0.2,
        "frozen_layers": min(2, fields.get("frozen_layers", 0)),
    }
    if "dora" in fields:
        changes["dora"] = {"rank": 4}
    return merge(fields, changes)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the adapter or of the whole model, whichever was written."""
    (written,) = [f for f in ("adapter_model.safetensors", "model.safetensors") if (folder / f).is_file()]
    return load_file(folder / written)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_to_its_end(name: str, toy: Toy, data: Path, tmp_path: Path) -> None:
    recipe = toy_sized(name, toy, tmp_path, max_steps=2)
    train_cloze(recipe, data, resume=False)
    before, after = toy.state(), weights_of(tmp_path)
    if recipe.dora:
        assert any(value.any() for name, value in after.items() if "lora_B" in name), "they start from zero"
    else:
        assert any(not value.equal(before[name]) for name, value in after.items())


@pytest.mark.slow
def test_an_adapter_of_several_domains_resumes_to_the_same_end(toy: Toy, data: Path, tmp_path: Path) -> None:
    fields = toy_fields("tinyrm/large-all-at-once", toy, tmp_path / "whole") | {"dora": {"rank": 4, "alpha": 4}}
    recipe = ClozeRecipe.model_validate(fields)
    train_cloze(recipe, data, resume=False)
    assert_resumed(recipe, tmp_path, lambda again: train_cloze(again, data, resume=True))


def assert_resumed(recipe: ClozeRecipe | SftRecipe, tmp_path: Path, resume: Callable[[Any], object]) -> None:
    """Resume in another folder from the sixth step of an uninterrupted run, and compare the ends."""
    (tmp_path / "parts").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "parts" / "checkpoint-6")
    shutil.copy(tmp_path / "whole" / RECIPE_FILE, tmp_path / "parts")
    resume(recipe.model_copy(update={"output_dir": tmp_path / "parts"}))
    losses = [
        next(e["eval_loss"] for e in reversed(read_log(tmp_path / run)) if "eval_loss" in e)
        for run in ("whole", "parts")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-5, rtol=0)
    stopped = weights_of(tmp_path / "whole" / "checkpoint-6")
    assert any(not value.equal(whole[key]) for key, value in stopped.items()), "nothing was left to learn"


def test_the_output_of_a_run_matches_its_recipe(toy: Toy, data: Path, tmp_path: Path) -> None:
    recipe = toy_sized("author/large-reasoning", toy, tmp_path, max_steps=2)
    train_cloze(recipe, data, resume=False)
    assert Spec.load(tmp_path).template.label_words == ("0", "1")
    record = json.loads((tmp_path / RUN_FILE).read_text())
    assert ClozeRecipe.model_validate(record["recipe"]) == recipe
    assert list(record["data_sha256"]) == ["reasoning.jsonl"]
    assert [part["pairs"] for part in record["data"].values()] == [60]
    assert isinstance(PeftModel.from_pretrained(load_masked_lm(str(toy.base)), str(tmp_path)), PeftModel)


def test_the_families_cover_all_recipes() -> None:
    """Check that each option of a shipped recipe occurs in a recipe that is run here."""

    def switches(name: str, recipe: ClozeRecipe) -> tuple[object, ...]:
        adapted = recipe.dora is not None and recipe.dora.alpha == recipe.dora.rank
        return (
            name.partition("/")[0],
            recipe.frozen_layers > 0,
            recipe.dora is not None,
            adapted,
            len(recipe.prefixes) > 1,
            recipe.orders,
        )

    shipped = {name: load_recipe(find_recipe(name)) for name in recipe_names() if name.startswith(VARIANTS)}
    cloze = {name: recipe for name, recipe in shipped.items() if isinstance(recipe, ClozeRecipe)}
    cloze.pop(DISTILLED)
    assert {switches(*each) for each in cloze.items()} == {switches(name, cloze[name]) for name in FAMILIES}
    assert shipped.keys() - cloze.keys() == {
        "paper/large-sft",
        "author/large-sft",
        "tinyrm/large-sft",
        MERGED,
        DISTILLED,
    }


@pytest.mark.parametrize("name", ["paper/large-sft", "author/large-sft"])
def test_the_sft_stages_run_to_their_end(name: str, toy: Toy, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "2 + 2 = 4."}]
    lines = (json.dumps({"messages": [{"role": "user", "content": f"{i}?"}, *talk[1:], *talk]}) for i in range(60))
    (tmp_path / "oasst2.jsonl").write_text("\n".join(lines))
    changes = {"model": str(toy.base), "output_dir": str(tmp_path / "out"), "held_out_fraction": 0.2}
    optimization = SIZE | {"max_steps": 2}
    recipe = SftRecipe.model_validate(merge(read_recipe(find_recipe(name)), {**changes, "optimization": optimization}))
    train_sft(recipe, tmp_path, resume=False)
    assert (tmp_path / "out" / "model.safetensors").is_file()


class Captured(Exception):
    """End a run before it trains."""


def test_the_data_of_a_run_match_its_recipe(toy: Toy, data: Path, tmp_path: Path) -> None:
    caught: dict[str, Any] = {}

    def capture(**arguments: Any) -> ClozeTrainer:
        caught.update(arguments)
        raise Captured

    def datasets(name: str) -> tuple[PairDataset, PairDataset]:
        with pytest.raises(Captured):
            train_cloze(toy_sized(name, toy, tmp_path), data, resume=False, make_trainer=capture)
        return caught["train_dataset"], caught["eval_dataset"]

    def instructions(shown: PairDataset) -> set[tuple[str | None, str]]:
        return {(pair.domain, shown.sampling.instruction(i, pair.domain)) for i, pair in enumerate(shown.pairs)}

    ours = toy_sized("tinyrm/large-all-at-once", toy, tmp_path)
    learn, held_out = datasets("tinyrm/large-all-at-once")
    counts = Counter(pair.domain for pair in learn.pairs)
    # Of 40, 60 and 80 pairs, less those held out, about a fifth: the geometric mean of each with the smallest.
    apart = Counter(pair.domain for pair in held_out.pairs)
    left = {domain: 40 + 20 * number - apart[domain] for number, domain in enumerate(DOMAINS)}
    assert dict(counts) == {domain: round((left["chat"] * count) ** 0.5) for domain, count in left.items()}
    assert dict(counts) == {"chat": 31, "reasoning": 40, "safety": 42}
    assert left["chat"] < counts["reasoning"] < left["reasoning"]
    drawn = {(domain, prefix) for domain, pool in ours.prefixes.items() for prefix in pool}
    assert drawn <= instructions(learn)
    assert instructions(held_out) == {(domain, ours.spec.domains[domain]) for domain in DOMAINS}
    assert all(None not in held_out[i] for i in range(len(held_out)))
    learn, held_out = datasets("paper/large-chat")
    assert all(None in learn[i] for i in range(len(learn)))
    assert all(None not in held_out[i] for i in range(len(held_out)))


@pytest.mark.slow
def test_specialists_become_one_by_merging_and_by_distillation(toy: Toy, data: Path, tmp_path: Path) -> None:
    """Run three shipped recipes that make the input of two others."""
    folders = {domain: str(tmp_path / domain) for domain in DOMAINS}
    for domain, folder in folders.items():
        train_cloze(toy_sized(f"tinyrm/large-{domain}", toy, Path(folder), max_steps=2), data, resume=False)

    fields = read_recipe(find_recipe(MERGED))
    assert [Path(each["path"]).name for each in fields["specialists"]] == [f"large-{domain}" for domain in DOMAINS]
    paths = [{"path": folder} for folder in folders.values()]
    changes = {"base": str(toy.base), "specialists": paths, "output_dir": str(tmp_path / "merged")}
    merge_specialists(MergeRecipe.model_validate(fields | changes))
    assert set(Spec.load(tmp_path / "merged").domains) >= set(DOMAINS)

    teachers = {domain: {"path": folder} for domain, folder in folders.items()}
    student = toy_fields(DISTILLED, toy, tmp_path / "student" / "whole")
    recipe = DistilRecipe.model_validate(student | {"teachers": teachers})
    train_distil(recipe, data, resume=False)
    assert_resumed(recipe, tmp_path / "student", lambda again: train_distil(again, data, resume=True))
