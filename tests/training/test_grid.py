"""Test several recipes with several seeds: finished runs are skipped, others resume, results are gathered."""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training.conftest import Toy, read_log
from tinyrm.errors import InvalidInput
from tinyrm.spec import RUN_FILE
from training.__main__ import main
from training.experiments import grid
from training.experiments.grid import (
    RESULTS_FILE,
    Compared,
    Mean,
    comparison_table,
    difference,
    load_all,
    planned,
    run_all,
    varied,
)
from training.loading import find_recipe, load_recipe, recipe_names
from training.model.teachers import TrainedTeacher
from training.recipe import ClozeRecipe, DistilRecipe, MergeRecipe
from training.stages.cloze import train_cloze
from training.trainer import JsonLog

EXPERIMENTS = [Path(name).name for name in recipe_names() if Path(name).parent == Path("experiments")]
MERGES = [name for name in EXPERIMENTS if name.startswith("merged-")]


def only_cloze(recipes: dict[str, Compared]) -> dict[str, Compared]:
    return {"cloze": recipes["cloze"]}


def write(toy: Toy, path: Path, **changes: Any) -> str:
    recipe = toy.recipe(Path("elsewhere"), {"max_steps": 4, "save_steps": 2}, **changes)
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return str(path)


@pytest.fixture(scope="module")
def recipes(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compared]:
    folder = tmp_path_factory.mktemp("recipes")
    return load_all([write(toy, folder / "cloze.yaml"), write(toy, folder / "pair.yaml", head="pair-cls")])


@pytest.fixture(scope="module")
def finished(toy: Toy, recipes: dict[str, Compared], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a grid of two recipes and two seeds. Tests must not write into it."""
    out = tmp_path_factory.mktemp("finished")
    assert run_all(planned(recipes, out, (1, 2)), toy.data, out) == 0
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the folders (name/seed) that were trained, in order."""
    folders: list[str] = []
    real = grid.train_cloze

    def spy(recipe: ClozeRecipe, data_dir: Path, *, resume: bool) -> None:
        folders.append("/".join(recipe.output_dir.parts[-2:]))
        real(recipe, data_dir, resume=resume)

    monkeypatch.setattr(grid, "train_cloze", spy)
    return folders


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / RESULTS_FILE).read_text())


def test_runs_are_ordered_by_seed(recipes: dict[str, Compared], tmp_path: Path) -> None:
    folders = ["/".join(run.output_dir.parts[-2:]) for run in planned(recipes, tmp_path, (1, 2, 1))]
    assert folders == ["cloze/seed-1", "pair/seed-1", "cloze/seed-2", "pair/seed-2"]


def test_every_recipe_runs_with_every_seed_once(
    toy: Toy, recipes: dict[str, Compared], copied: Path, trained: list[str]
) -> None:
    first = results(copied)
    assert not list(copied.rglob("checkpoint-*"))
    assert run_all(planned(recipes, copied, (1, 2)), toy.data, copied) == 0
    assert trained == [], "nothing is left to do"
    assert results(copied) == first
    assert run_all(planned(recipes, copied, (1, 3)), toy.data, copied) == 0
    assert trained == ["cloze/seed-3", "pair/seed-3"]
    assert all(set(result["seeds"]) == {"1", "2", "3"} for result in results(copied).values())


def test_a_student_is_compared_with_other_recipes_and_seeds_share_its_targets(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_cloze(toy.recipe(tmp_path / "teacher"), toy.data, resume=False)
    path = tmp_path / "student.yaml"
    fields = yaml.safe_load(Path(write(toy, path, head="pointwise")).read_text())
    teachers = [{"path": str(tmp_path / "teacher")}]
    path.write_text(
        yaml.safe_dump(fields | {"task": "distil", "teachers": teachers, "targets": str(tmp_path / "kept")})
    )
    student, out = load_all([str(path)]), tmp_path / "out"
    assert run_all(planned(student, out, [1]), toy.data, out) == 0
    monkeypatch.setattr(TrainedTeacher, "margins", None)
    assert run_all(planned(student, out, [1, 2]), toy.data, out) == 0, "one is finished, the other needs no teacher"
    assert "teacher_agreement" in results(out)["student"]["seeds"]["2"]


def test_results_are_what_the_runs_measured(finished: Path) -> None:
    found = results(finished)
    assert list(found) == ["cloze", "pair"]
    for name, result in found.items():
        losses = [read_log(finished / name / f"seed-{seed}")[-1]["eval_loss"] for seed in (1, 2)]
        assert [result["seeds"][seed]["loss"] for seed in ("1", "2")] == losses
        assert losses[0] != losses[1], "another seed is another run"
        assert result["mean"]["loss"] == pytest.approx(sum(losses) / 2)
        assert result["std"]["loss"] == pytest.approx(statistics.stdev(losses))
        lines = (finished / name / "seed-1" / "held_out.jsonl").read_text().splitlines()
        assert result["seeds"]["1"]["pairs"] == len(lines)
        measured = {"pairs", "loss", "nll", "accuracy", "accuracy_one_order"}
        measured |= {"swap_consistency", "first_position_margin"}
        assert set(result["mean"]) == measured


def test_an_interrupted_run_resumes_to_the_same_end(
    toy: Toy, recipes: dict[str, Compared], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def interrupt(_: Any, __: Any, state: Any, ___: Any, **____: Any) -> None:
        begun.append(state.global_step)
        if begun == [0, 1, 2, 3]:
            raise KeyboardInterrupt

    monkeypatch.setattr(JsonLog, "on_step_begin", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_all(planned(only_cloze(recipes), tmp_path, (1,)), toy.data, tmp_path)
    assert [path.name for path in (tmp_path / "cloze" / "seed-1").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / RESULTS_FILE).exists()
    run_all(planned(only_cloze(recipes), tmp_path, (1,)), toy.data, tmp_path)
    assert begun == [0, 1, 2, 3, 2, 3], "it went on from its checkpoint"
    whole, broken = (results(out)["cloze"]["seeds"]["1"]["loss"] for out in (finished, tmp_path))
    assert broken == pytest.approx(whole, abs=1e-5)


def test_one_refused_run_does_not_stop_the_others(
    toy: Toy, recipes: dict[str, Compared], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write(toy, tmp_path / "bad.yaml", frozen_layers=9)
    runs = planned(load_all([bad]) | varied(only_cloze(recipes), (), 1), tmp_path, (1,))
    assert run_all(runs, toy.data, tmp_path) == 1
    assert "bad/seed-1: frozen_layers=9 leaves nothing to learn" in capsys.readouterr().err
    assert list(results(tmp_path)) == ["cloze"]


def test_a_folder_of_another_recipe_is_neither_used_nor_overwritten(
    toy: Toy, recipes: dict[str, Compared], finished: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "cloze" / "seed-1" / RUN_FILE).read_text()
    assert run_all(planned(varied(only_cloze(recipes), (), 5), finished, (1,)), toy.data, finished) == 1
    assert "another recipe" in capsys.readouterr().err
    assert trained == []
    assert (finished / "cloze" / "seed-1" / RUN_FILE).read_text() == before


def test_other_data_and_other_recipes_do_not_mix_with_what_is_there(
    toy: Toy, recipes: dict[str, Compared], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(toy.data, tmp_path / "data"))
    assert run_all(planned(varied({"other": recipes["cloze"]}, (), 1), copied, (1,)), data, copied) == 0
    assert list(results(copied)) == ["cloze", "pair", "other"], "an earlier call's results stay"
    (file,) = [path for path in data.iterdir() if path.name == "pairs.jsonl"]
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert run_all(planned(only_cloze(recipes), copied, (1,)), data, copied) == 1
    assert "other data" in capsys.readouterr().err


def test_a_grid_refuses_two_of_a_name_and_other_tasks() -> None:
    with pytest.raises(InvalidInput, match="two recipes are called cloze"):
        load_all(["experiments/cloze", "experiments/cloze"])
    with pytest.raises(InvalidInput, match="task tokenizer; a grid compares recipes of task cloze, distil and merge"):
        load_all(["from_scratch/1-tokenizer"])


def test_rates_make_a_variant_each(recipes: dict[str, Compared]) -> None:
    variants = varied(recipes, (1e-4, 2e-4), None)
    rates = {name: recipe.optimization.peak_lr for name, recipe in variants.items()}
    assert rates == {"cloze@0.0001": 1e-4, "cloze@0.0002": 2e-4, "pair@0.0001": 1e-4, "pair@0.0002": 2e-4}
    with pytest.raises(InvalidInput, match="peak_lr"):
        varied(recipes, (0.0,), None)


def cells(line: str) -> list[str]:
    """Return the cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_command_sums_up_in_a_row_for_each_recipe(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write(toy, tmp_path / "pair.yaml", head="pair-cls")
    arguments = ["compare", recipe, "--data", str(toy.data), "--out", str(tmp_path / "out"), "--max-steps", "1"]
    assert main([*arguments, "--seeds", "5", "6"]) == 0
    mean = results(tmp_path / "out")["pair"]["mean"]["accuracy"]
    last = cells(capsys.readouterr().out.splitlines()[-1])
    assert last[:2] == ["pair", "2"]
    assert last[2].startswith(f"{100 * mean:.1f} ± ")
    assert main([*arguments, "--seeds", "5", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recipes": results(tmp_path / "out")}


def test_the_table_has_the_requested_recipes_and_compares_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = (("cloze", 0.65), ("pair-cls", 0.6), ("tokens", 0.7))
    of_seed = {name: {"1": {"accuracy": a, "accuracy_one_order": a, "swap_consistency": 1.0}} for name, a in accuracies}
    (tmp_path / RESULTS_FILE).write_text(json.dumps({name: {"seeds": each} for name, each in of_seed.items()}))
    monkeypatch.setattr(grid, "run_all", lambda *_: 0)
    names = [f"experiments/{name}" for name in ("pair-cls", "tokens", "pointwise")]
    assert main(["compare", *names, "--out", str(tmp_path)]) == 0
    rows = [cells(line)[:4] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["pair-cls", "1", "60.0", ""], ["tokens", "1", "70.0", "+10.0"]]


def seeds(*accuracies: float) -> dict[str, dict[str, float]]:
    names = ("accuracy", "accuracy_one_order", "swap_consistency")
    return {str(number): dict.fromkeys(names, value) for number, value in enumerate(accuracies)}


def test_the_interval_is_students() -> None:
    # By hand: mean 2, sample deviation 1, t(0.975, two degrees of freedom) = 4.303; 4.303 / sqrt(3) = 2.484.
    assert Mean.of([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.484), abs=1e-3)
    assert Mean.of([0.6]) == (0.6, None)


def test_a_difference_is_taken_seed_by_seed() -> None:
    """Compare within a seed: seeds hold out different pairs, which are easier or harder."""
    gap = difference(seeds(0.61, 0.71, 0.81), seeds(0.60, 0.70, 0.80), "accuracy")
    assert gap == pytest.approx((0.01, 0.0), abs=1e-9)
    assert difference({"7": {"accuracy": 1.0}}, seeds(0.5), "accuracy") is None


def test_the_table_compares_with_the_first_recipe() -> None:
    lines = comparison_table({"cloze": {"seeds": seeds(0.6, 0.7)}, "head": {"seeds": seeds(0.58, 0.67)}}).splitlines()
    assert len(lines) == 4
    assert cells(lines[2])[:5] == ["cloze", "2", "65.0 ± 63.5", "", "65.0 ± 63.5"]
    assert cells(lines[3])[:4] == ["head", "2", "62.5 ± 57.2", "-2.5 ± 6.4"]


def test_a_table_of_one_seed_claims_no_spread() -> None:
    assert cells(comparison_table({"cloze": {"seeds": seeds(0.6)}}).splitlines()[2]) == [
        "cloze",
        "1",
        "60.0",
        "",
        "60.0",
        "60.0",
    ]


def changes(name: str) -> dict[str, Any]:
    """Return the fields in which a shipped experiment differs from its reference, except its output folder."""
    base, other = (
        load_all([f"experiments/{each}"])[each].model_dump(exclude={"output_dir"}) for each in ("cloze", name)
    )
    flat = {key: value for key, value in other.items() if value != base.get(key) and key != "optimization"}
    optimization = other["optimization"].items()
    return flat | {key: value for key, value in optimization if value != base["optimization"][key]}


def of_domain(domain: str) -> tuple[dict[str, Any]]:
    everything = {"domain": None, "max_pairs": None, "revision": None}
    return ({"dataset": "jsonl", "part": domain, "path": "short.jsonl", **everything},)


def test_each_experiment_changes_its_own_field_and_nothing_else() -> None:
    adapter = {"rank": 32, "alpha": 32, "dropout": 0.0}
    assert {name: changes(name) for name in EXPERIMENTS if name not in MERGES} == {
        "cloze": {},
        **{head: {"head": head} for head in ("pair-cls", "pair-mean", "pointwise", "tokens")},
        "distilled": {
            "head": "pointwise",
            "task": "distil",
            "teachers": ({"path": "models/starter", "base": None},),
            "targets": Path("runs/experiments/targets"),
            "teacher_temperature": 1.0,
            "hard_rate": 0.0,
        },
        "dora": {"dora": adapter | {"magnitude": True}, "peak_lr": 2e-3},
        "lora": {"dora": adapter | {"magnitude": False}, "peak_lr": 2e-3},
        **{f"frozen-{layers}": {"frozen_layers": layers} for layers in (2, 4, 6)},
        "one-order": {"orders": "coin"},
        "one-order-half": {"orders": "coin", "max_steps": 80},
        "consistency": {"consistency_weight": 0.1},
        **{f"specialist-{domain}": {"sources": of_domain(domain)} for domain in ("chat", "reasoning", "safety")},
        "generalist": {"balance": 0.0, "max_steps": 480},
        **{f"size-{width}": {"model": f"runs/sizes/base-{width}"} for width in (128, 192)},
    }


def toy_experiments(toy: Toy, out: Path, names: list[str]) -> dict[str, Compared]:
    """Return the shipped experiments with a toy model, toy data and small sizes."""
    small = toy.recipe(out)
    fields = {field: getattr(small, field) for field in ("model", "sources", "spec", "optimization")}
    recipes = load_all([f"experiments/{each}" for each in names])
    return {
        name: recipe.model_copy(update={"base": recipe.base and str(toy.base)})
        if isinstance(recipe, MergeRecipe)
        else recipe.model_copy(
            update={**fields, "frozen_layers": min(recipe.frozen_layers, 3), "train_max_tokens": None}
            | ({"targets": out / "kept"} if isinstance(recipe, DistilRecipe) else {})
        )
        for name, recipe in recipes.items()
    }


@pytest.mark.slow
def test_every_experiment_runs_on_a_toy(toy: Toy, tmp_path: Path) -> None:
    recipes = toy_experiments(toy, tmp_path, EXPERIMENTS)
    assert run_all(planned(recipes, tmp_path, (1,)), toy.data, tmp_path) == 0
    assert sorted(results(tmp_path)) == EXPERIMENTS


def test_a_merge_uses_the_specialists_of_its_seed_and_their_held_out_pairs(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["merged-mean", "merged-ties", *(f"specialist-{domain}" for domain in ("chat", "reasoning", "safety"))]
    recipes = toy_experiments(toy, tmp_path, names)
    assert run_all(planned(recipes, tmp_path, (7,)), toy.data, tmp_path) == 0
    for seed in ("7",):
        record = json.loads((tmp_path / "merged-ties" / f"seed-{seed}" / RUN_FILE).read_text())
        assert all(path.endswith(f"/seed-{seed}") for path in record["specialists_sha256"])
        # Trained alike here, the three are one model, and so is their mean: it has to measure what they measured.
        merged, one = (tmp_path / name / f"seed-{seed}" for name in ("merged-mean", "specialist-chat"))
        weights, expected = (load_file(folder / "model.safetensors") for folder in (merged, one))
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
        mean, chat = (results(tmp_path)[folder.parent.name]["seeds"][seed] for folder in (merged, one))
        # Of two steps: the orders cancel but for rounding, and which response that favours differs between machines.
        steady = mean.keys() - {"accuracy"}
        assert {name: mean[name] for name in steady} == pytest.approx({name: chat[name] for name in steady}, abs=1e-4)
    assert run_all(planned({"merged-mean": recipes["merged-mean"]}, tmp_path / "empty", (1,)), toy.data, tmp_path) == 1
    assert "cloze.json" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["", "scratch-"])
def test_the_ways_to_read_learn_from_as_many_pairs_in_each_step(base: str) -> None:
    names = [f"experiments/ways/{base}{way}" for way in ("cloze", "pointwise", "set-none", "set-last")]
    recipes = [recipe for recipe in map(load_recipe, map(find_recipe, names)) if isinstance(recipe, ClozeRecipe)]
    assert [recipe.optimization.batch_size // recipe.rows_per_pair for recipe in recipes] == [16] * 4
    differ = [recipe.model_dump(exclude={"output_dir", "head", "sets", "optimization"}) for recipe in recipes]
    assert all(other == differ[0] for other in differ), "nothing else differs"
