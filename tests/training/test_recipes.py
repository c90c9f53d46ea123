"""Compare every shipped recipe with its published table: trainable weights, steps, variants."""

import pytest
import torch
from transformers import AutoModelForMaskedLM

from training.experiments.plan import PUBLISHED, Plan, find_config, plan
from training.loading import RECIPES, find_recipe, load_recipe, recipe_names
from training.recipe import ClozeRecipe, SftRecipe

PAIRWISE = [
    name
    for name in recipe_names()
    if name.partition("/")[0] in ("paper", "author", "tinyrm")
    and isinstance(load_recipe(find_recipe(name)), ClozeRecipe)
]
ROWS = {
    "large-chat": ("large", 26, 25.6, 712),
    "large-reasoning": ("large", 12, 33.3, 213),
    "large-safety": ("large", 7, 258.5, 164),
    "large-all-at-once": ("large", 5, 283.0, 1089),
    "base-chat": ("base", 2, 100.9, 712),
    "base-reasoning": ("base", 17, 6.4, 213),
    "base-safety": ("base", 12, 50.8, 164),
}
WHOLE = {"base": 149.7, "large": 395.9}
# Of every layer at rank 128: 27.2 M and 57.9 M, and head.dense.
ADAPTED = {"base": 27.4, "large": 58.1}
RATES = {
    "large-chat": 7.865e-5,
    "large-reasoning": 2.327e-5,
    "large-safety": 5.845e-5,
    "large-all-at-once": 9.388e-5,
    "base-chat": 7.642e-5,
    "base-reasoning": 8.354e-5,
    "base-safety": 1.478e-5,
}
ETTIN = {"17m": 16.9, "32m": 32.1, "68m": 68.5, "150m": 149.7, "400m": 395.9, "1b": 1031.3}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Return the plan of every shipped recipe with preference pairs, in a folder without data."""
    nothing = tmp_path_factory.mktemp("nothing")
    return {name: plan(recipe(name), nothing) for name in PAIRWISE}


def recipe(name: str) -> ClozeRecipe:
    loaded = load_recipe(find_recipe(name))
    assert isinstance(loaded, ClozeRecipe)
    return loaded


def millions(planned: Plan) -> float:
    return round(planned.parts.learning / 1e6, 1)


def test_every_row_is_there_in_every_variant() -> None:
    expected = {f"{variant}/{row}" for variant in ("paper", "author", "tinyrm") for row in ROWS}
    expected |= {f"tinyrm/ettin-{size}" for size in ETTIN} | {"tinyrm/base-all-at-once", "tinyrm/base-pointwise"}
    assert expected <= set(PAIRWISE)


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_papers_table(plans: dict[str, Plan], row: str) -> None:
    size, frozen, learning, batches = ROWS[row]
    planned = plans[f"paper/{row}"]
    optimization = planned.recipe.optimization
    assert planned.recipe.model == f"answerdotai/ModernBERT-{size}"
    assert planned.recipe.frozen_layers == frozen
    assert millions(planned) == learning
    assert planned.published_rows // 256 == batches
    assert optimization.peak_lr == RATES[row]
    assert (optimization.batch_size, optimization.epochs, optimization.seed) == (256, 1, 17)
    assert (optimization.warmup_ratio, optimization.floor_ratio) == (0.06, 0.02)
    assert planned.recipe.spec.template.label_words == (" 0", " 1")
    assert (planned.recipe.orders, planned.recipe.coin_pairs, planned.recipe.training_tokens) == ("coin", 1, 3600)
    assert bool(planned.recipe.dora) == row.endswith("reasoning")


@pytest.mark.parametrize("row", ROWS)
def test_the_authors_code_freezes_nothing_and_uses_its_own_wording(plans: dict[str, Plan], row: str) -> None:
    planned = plans[f"author/{row}"]
    size = ROWS[row][0]
    assert planned.recipe.frozen_layers == 0
    assert millions(planned) == (ADAPTED if planned.recipe.dora else WHOLE)[size]
    assert planned.recipe.spec.template.label_words == ("0", "1")
    assert (planned.recipe.orders, planned.recipe.coin_pairs, planned.recipe.training_tokens) == ("coin", 1000, 3600)
    assert planned.recipe.optimization == plans[f"paper/{row}"].recipe.optimization
    assert not planned.recipe.dora or (planned.recipe.dora.rank, planned.recipe.dora.alpha) == (128, 8)
    hh_is_left_out = row == "large-all-at-once"
    assert (160_800 in planned.pairs) == (160_800 in plans[f"paper/{row}"].pairs and not hh_is_left_out)


@pytest.mark.parametrize("row", [*ROWS, "base-all-at-once", *(f"ettin-{size}" for size in ETTIN)])
def test_our_variant_uses_both_orders_and_draws_prefixes(plans: dict[str, Plan], row: str) -> None:
    planned = plans[f"tinyrm/{row}"]
    ours = planned.recipe
    assert (ours.orders, ours.loss, ours.spec.template.name, ours.frozen_layers) == ("both", "labels", "figure2", 0)
    assert planned.rows == 2 * sum(planned.learned_pairs.values())
    domains = {source.domain for source in ours.sources}
    assert set(ours.prefixes) == domains
    assert all(len(pool) > 1 for pool in ours.prefixes.values())
    assert ("chat" in domains) == any((s.part, s.domain) == ("offsetbias", "chat") for s in ours.sources)
    assert not ours.dora or ours.dora.rank == ours.dora.alpha


def test_row_8_continues_from_its_sft_stage(plans: dict[str, Plan]) -> None:
    for variant, objective in (("paper", "masked"), ("author", "copy"), ("tinyrm", "masked")):
        stage = load_recipe(find_recipe(f"{variant}/large-sft"))
        assert isinstance(stage, SftRecipe)
        assert stage.objective == objective
        assert stage.optimization.weight_decay / stage.optimization.peak_lr == pytest.approx(0.01)
        chat = plans[f"{variant}/large-sft-chat"]
        assert chat.recipe.model == str(stage.output_dir)
        # Known before that folder is there: the recipe that writes it starts from a published model.
        assert chat.parts.parameters == 395_881_664
    assert 160_800 not in plans["author/large-sft-chat"].pairs


def test_the_open_generalists_are_free_of_what_forbids_commercial_use(plans: dict[str, Plan]) -> None:
    for size in ("base", "large"):
        ours = plans[f"tinyrm/{size}-all-at-once-open"]
        assert "pku-saferlhf" not in {source.dataset for source in ours.recipe.sources}
        shares = [(s.dataset, s.part) for s in ours.recipe.sources]
        assert len(set(shares)) == len(shares)
        assert max(ours.learned_pairs.values()) < 1.4 * min(ours.learned_pairs.values())
        assert ours.recipe.model == plans[f"tinyrm/{size}-all-at-once"].recipe.model


def test_the_generalist_balances_its_domains(plans: dict[str, Plan]) -> None:
    learned = plans["tinyrm/base-all-at-once"].learned_pairs
    assert max(learned.values()) < 1.4 * min(learned.values())
    heap = plans["paper/large-all-at-once"].learned_pairs
    assert max(heap.values()) > 3 * min(heap.values())


@pytest.mark.parametrize("size", ETTIN)
def test_ettin_sizes_match_their_names(plans: dict[str, Plan], size: str) -> None:
    assert plans[f"tinyrm/ettin-{size}"].recipe.model == f"jhu-clsp/ettin-encoder-{size}"
    assert millions(plans[f"tinyrm/ettin-{size}"]) == ETTIN[size]


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in AutoModelForMaskedLM.from_config(find_config(name)).parameters())
            for name in PUBLISHED
        }
    assert counts["answerdotai/ModernBERT-base"] == 149_655_232
    assert counts["answerdotai/ModernBERT-large"] == 395_881_664


def test_papers_formula_on_the_recipes_of_both_sizes(plans: dict[str, Plan]) -> None:
    assert plans["paper/base-chat"].paper_gflop_per_token() == pytest.approx(0.325, abs=5e-4)
    assert plans["paper/large-chat"].paper_gflop_per_token() == pytest.approx(0.857, abs=5e-4)


def test_no_two_recipes_write_to_the_same_folder() -> None:
    folders = [load_recipe(find_recipe(name)).output_dir for name in recipe_names()]
    assert len(set(folders)) == len(folders)
    assert all(folder.parts[0] == "runs" for folder in folders)


def test_files_are_short_because_they_share_parts() -> None:
    rows = [find_recipe(name) for name in PAIRWISE]
    assert max(len(path.read_text().splitlines()) for path in rows) <= 25
    assert [path for path in RECIPES.rglob("_*.yaml") if path.stem in recipe_names()] == []


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("tinyrm/")])
def test_our_recipes_teach_harmlessness_as_safety(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    for source in getattr(recipe, "sources", ()):
        if source.dataset == "hh-rlhf":
            assert source.domain == ("safety" if source.part == "harmless-base" else "chat"), source.name
            assert source.part is not None, "all of it is both"
