"""Several recipes with several seeds: what is finished is skipped, what is not resumes, results are gathered."""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.conftest import REPOSITORY
from tests.training.conftest import Toy, read_log
from tinyrm.errors import InvalidInput
from tinyrm.spec import RUN_FILE
from training.experiments import grid
from training.experiments.grid import RESULTS_FILE, Compared, load_all, main, planned, print_summary, run_all, varied
from training.loading import recipe_names
from training.recipe import ClozeRecipe, MergeRecipe
from training.trainer import JsonLog

EXPERIMENTS = [Path(name).name for name in recipe_names() if name.startswith("experiments/")]
ACCURACIES = (("cloze", 0.65), ("pair", 0.6), ("tokens", 0.7))
MERGES = [name for name in EXPERIMENTS if name.startswith("merged-")]


def only_cloze(recipes: dict[str, Compared]) -> dict[str, Compared]:
    return {"cloze": recipes["cloze"]}


def write(toy: Toy, path: Path, **changes: Any) -> str:
    recipe = toy.recipe(Path("elsewhere"), {"max_steps": 4, "save_steps": 2}, **changes)
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return str(path)


@pytest.fixture
def recipes(toy: Toy, tmp_path: Path) -> dict[str, Compared]:
    return load_all([write(toy, tmp_path / "cloze.yaml"), write(toy, tmp_path / "pair.yaml", head="pair-cls")])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders (name/seed) that were trained, in order."""
    folders: list[str] = []
    real = grid.train_cloze

    def spy(recipe: ClozeRecipe, data_dir: Path, *, resume: bool) -> None:
        folders.append("/".join(recipe.output_dir.parts[-2:]))
        real(recipe, data_dir, resume=resume)

    monkeypatch.setattr(grid, "train_cloze", spy)
    return folders


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / RESULTS_FILE).read_text())


def test_every_recipe_runs_with_every_seed_once(
    toy: Toy, recipes: dict[str, Compared], trained: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run_all(planned(recipes, out, (1, 2)), toy.data, out) == 0
    assert trained == ["cloze/seed-1", "pair/seed-1", "cloze/seed-2", "pair/seed-2"]
    first = results(out)
    assert run_all(planned(recipes, out, (1, 2)), toy.data, out) == 0
    assert len(trained) == 4, "nothing is left to do"
    assert results(out) == first
    assert run_all(planned(recipes, out, (1, 3)), toy.data, out) == 0
    assert trained[4:] == ["cloze/seed-3", "pair/seed-3"]
    assert not list(out.rglob("checkpoint-*"))


def test_results_are_what_the_runs_measured(toy: Toy, recipes: dict[str, Compared], tmp_path: Path) -> None:
    runs = planned(recipes, tmp_path, (1, 2))
    run_all(runs, toy.data, tmp_path)
    found = results(tmp_path)
    assert list(found) == ["cloze", "pair"]
    for name, result in found.items():
        losses = [read_log(tmp_path / name / f"seed-{seed}")[-1]["eval_loss"] for seed in (1, 2)]
        assert [result["seeds"][seed]["loss"] for seed in ("1", "2")] == losses
        assert losses[0] != losses[1], "another seed is another run"
        assert result["mean"]["loss"] == pytest.approx(sum(losses) / 2)
        assert result["std"]["loss"] == pytest.approx(statistics.stdev(losses))
        lines = (tmp_path / name / "seed-1" / "held_out.jsonl").read_text().splitlines()
        assert result["seeds"]["1"]["pairs"] == len(lines)
        assert set(result["mean"]) == {
            "pairs", "loss", "accuracy", "accuracy_one_order", "swap_consistency", "first_position_margin",
        }  # fmt: skip


def test_an_interrupted_run_resumes_and_ends_as_if_it_had_not_been(
    toy: Toy, recipes: dict[str, Compared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def interrupt(_: Any, __: Any, state: Any, ___: Any, **____: Any) -> None:
        begun.append(state.global_step)
        if begun == [0, 1, 2, 3]:
            raise KeyboardInterrupt

    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    run_all(planned(only_cloze(recipes), whole, (1,)), toy.data, whole)
    monkeypatch.setattr(JsonLog, "on_step_begin", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_all(planned(only_cloze(recipes), broken, (1,)), toy.data, broken)
    assert [path.name for path in (broken / "cloze" / "seed-1").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (broken / RESULTS_FILE).exists()
    run_all(planned(only_cloze(recipes), broken, (1,)), toy.data, broken)
    assert begun == [0, 1, 2, 3, 2, 3], "it went on from its checkpoint"
    assert results(broken)["cloze"]["mean"]["loss"] == pytest.approx(results(whole)["cloze"]["mean"]["loss"], abs=1e-5)


def test_one_refused_run_does_not_stop_the_others(
    toy: Toy, recipes: dict[str, Compared], trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write(toy, tmp_path / "bad.yaml", frozen_layers=9)
    assert run_all(planned(load_all([bad]) | recipes, tmp_path, (1,)), toy.data, tmp_path) == 1
    assert "bad/seed-1: frozen_layers=9 leaves nothing to learn" in capsys.readouterr().err
    assert list(results(tmp_path)) == ["cloze", "pair"]


def test_a_folder_of_another_recipe_is_neither_taken_for_ours_nor_overwritten(
    toy: Toy, recipes: dict[str, Compared], trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(planned(only_cloze(recipes), tmp_path, (1,)), toy.data, tmp_path)
    before = (tmp_path / "cloze" / "seed-1" / RUN_FILE).read_text()
    assert run_all(planned(varied(only_cloze(recipes), None, 5), tmp_path, (1,)), toy.data, tmp_path) == 1
    assert "another recipe" in capsys.readouterr().err
    assert len(trained) == 1
    assert (tmp_path / "cloze" / "seed-1" / RUN_FILE).read_text() == before


def test_other_data_and_other_recipes_do_not_mix_with_what_is_there(
    toy: Toy, recipes: dict[str, Compared], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(toy.data, tmp_path / "data"))
    out = tmp_path / "out"
    run_all(planned(only_cloze(recipes), out, (1,)), data, out)
    assert run_all(planned({"pair": recipes["pair"]}, out, (1,)), data, out) == 0
    assert list(results(out)) == ["cloze", "pair"], "an earlier call's results stay"
    (file,) = [path for path in data.iterdir() if path.name == "pairs.jsonl"]
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert run_all(planned(only_cloze(recipes), out, (1,)), data, out) == 1
    assert "other data" in capsys.readouterr().err


def test_a_grid_refuses_two_of_a_name_and_other_tasks() -> None:
    with pytest.raises(InvalidInput, match="two recipes are called cloze"):
        load_all(["experiments/cloze", "experiments/cloze"])
    with pytest.raises(InvalidInput, match="task tokenizer; a grid compares those of task cloze and merge"):
        load_all(["starter/1-tokenizer"])


def test_rates_make_a_variant_each(recipes: dict[str, Compared]) -> None:
    variants = varied(recipes, (1e-4, 2e-4), None)
    rates = {name: recipe.optimization.peak_lr for name, recipe in variants.items()}
    assert rates == {"cloze@0.0001": 1e-4, "cloze@0.0002": 2e-4, "pair@0.0001": 1e-4, "pair@0.0002": 2e-4}
    with pytest.raises(ValidationError, match="peak_lr"):
        varied(recipes, (0.0,), None)


def test_command_sums_up_in_a_row_for_each_recipe(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(toy, tmp_path / "pair.yaml", head="pair-cls")
    arguments = ["grid", recipe, "--data", str(toy.data), "--out", str(tmp_path / "out"), "--max-steps", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "5", "6"])
    assert main() == 0
    mean = results(tmp_path / "out")["pair"]["mean"]["accuracy"]
    assert f"| pair | 2 | {100 * mean:.1f} ± " in capsys.readouterr().out


def test_the_table_is_of_what_was_asked_for_and_compares_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = {name: {"1": {"accuracy": a, "accuracy_one_order": a, "swap_consistency": 1.0}} for name, a in ACCURACIES}
    (tmp_path / RESULTS_FILE).write_text(json.dumps({name: {"seeds": each} for name, each in seeds.items()}))
    print_summary(tmp_path, ["pair", "tokens", "none"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[:4] for row in rows] == [["| pair", "1", "60.0", ""], ["| tokens", "1", "70.0", "+10.0"]]


def test_command_runs_as_a_module_and_fails_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.experiments.grid", "none.yaml", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("training.experiments.grid: ")
    assert "Traceback" not in done.stderr


def changes(name: str) -> dict[str, Any]:
    """What a shipped experiment says otherwise than the one it is compared with, where it writes aside."""
    base, other = (
        load_all([f"experiments/{each}"])[each].model_dump(exclude={"output_dir"}) for each in ("cloze", name)
    )
    flat = {key: value for key, value in other.items() if value != base[key] and key != "optimization"}
    optimization = other["optimization"].items()
    return flat | {key: value for key, value in optimization if value != base["optimization"][key]}


def of_domain(domain: str) -> tuple[dict[str, Any]]:
    return ({"dataset": "jsonl", "part": domain, "domain": None, "max_pairs": None, "path": "short.jsonl"},)


def test_each_experiment_changes_what_it_asks_about_and_nothing_else() -> None:
    adapter = {"rank": 32, "alpha": 32, "dropout": 0.0}
    assert {name: changes(name) for name in EXPERIMENTS if name not in MERGES} == {
        "cloze": {},
        **{head: {"head": head} for head in ("pair-cls", "pair-mean", "pointwise", "tokens")},
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
    """As shipped, but for model, data and size."""
    small = toy.recipe(out)
    fields = {field: getattr(small, field) for field in ("model", "sources", "spec", "optimization")}
    recipes = load_all([f"experiments/{each}" for each in names])
    return {
        name: recipe.model_copy(update={"base": recipe.base and str(toy.base)})
        if isinstance(recipe, MergeRecipe)
        else recipe.model_copy(
            update={**fields, "frozen_layers": min(recipe.frozen_layers, 3), "train_max_tokens": None}
        )
        for name, recipe in recipes.items()
    }


def test_every_experiment_runs_on_a_toy(toy: Toy, tmp_path: Path) -> None:
    recipes = toy_experiments(toy, tmp_path, EXPERIMENTS)
    assert run_all(planned(recipes, tmp_path, (1,)), toy.data, tmp_path) == 0
    assert sorted(results(tmp_path)) == EXPERIMENTS


def test_a_merge_is_of_its_seeds_specialists_and_measured_as_they_are(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["merged-mean", "merged-ties", *(f"specialist-{domain}" for domain in ("chat", "reasoning", "safety"))]
    recipes = toy_experiments(toy, tmp_path, names)
    assert run_all(planned(recipes, tmp_path, (1, 2)), toy.data, tmp_path) == 0
    for seed in ("1", "2"):
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
