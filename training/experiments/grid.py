"""python -m training.experiments.grid RECIPE ...: each recipe with several seeds, and what they measured in one file.

Stopped and started again it goes on where it was: finished runs are skipped, an interrupted one resumes.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.pairs import read_pairs
from tinyrm.spec import HELD_OUT_FILE, read_run
from training.experiments.grid_merge import merge_and_measure, of_seed
from training.experiments.grid_report import table
from training.loading import find_recipe, load_recipe
from training.output import identity
from training.recipe import ClozeRecipe, MergeRecipe, Optimization
from training.stages.cloze import pair_hashes, train_cloze

RESULTS_FILE = "results.json"
SEEDS = (17, 18, 19)
Compared = ClozeRecipe | MergeRecipe


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.experiments.grid", description=__doc__)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="files or shipped names, as in experiments/cloze")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the recipes' data files")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="one folder per recipe and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: 17 18 19")
    parser.add_argument("--peak-lrs", type=float, nargs="+", help="each recipe at each of these rates, not at its own")
    parser.add_argument("--max-steps", type=int, help="stop every run after so many steps, to try a grid out")
    arguments = parser.parse_args()
    try:
        variants = varied(load_all(arguments.recipes), arguments.peak_lrs, arguments.max_steps)
        runs = planned(variants, arguments.out, arguments.seeds)
        failed = run_all(runs, arguments.data, arguments.out)
    except (TinyRMError, ValidationError, OSError) as error:
        print(f"training.experiments.grid: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("training.experiments.grid: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print_summary(arguments.out, variants)
    return 1 if failed else 0


def load_all(names: Iterable[str]) -> dict[str, Compared]:
    """Recipes by the names of their files. Raises InvalidInput for two of one name, and for one of another task."""
    recipes: dict[str, Compared] = {}
    for path in map(find_recipe, names):
        recipe = load_recipe(path)
        if not isinstance(recipe, ClozeRecipe | MergeRecipe) or recipe.task not in ("cloze", "merge"):
            raise InvalidInput(f"{path} is of task {recipe.task}; a grid compares those of task cloze and merge")
        if path.stem in recipes:
            raise InvalidInput(f"two recipes are called {path.stem}; rename one, results go by the name")
        recipes[path.stem] = recipe
    return recipes


def varied(
    recipes: Mapping[str, Compared], peak_lrs: Iterable[float] | None, max_steps: int | None
) -> dict[str, Compared]:
    """The recipes, shortened if `max_steps` is given; with `peak_lrs` each at each rate, called NAME@RATE."""
    short = {} if max_steps is None else {"max_steps": max_steps}
    if peak_lrs is None:
        return {name: _optimized(recipe, **short) for name, recipe in recipes.items()}
    return {
        f"{name}@{lr:g}": _optimized(recipe, peak_lr=lr, **short) for name, recipe in recipes.items() for lr in peak_lrs
    }


def planned(recipes: Mapping[str, Compared], out: Path, seeds: Iterable[int]) -> list[Compared]:
    """Each recipe with each seed, written to OUT/NAME/seed-SEED.

    Seed by seed, so that a grid stopped early has compared everything once; of a seed, what is merged comes first.
    """
    trained_first = sorted(recipes.items(), key=lambda item: isinstance(item[1], MergeRecipe))
    return [_of_seed(recipe, out, name, seed) for seed in dict.fromkeys(seeds) for name, recipe in trained_first]


def _of_seed(recipe: Compared, out: Path, name: str, seed: int) -> Compared:
    if isinstance(recipe, MergeRecipe):
        return of_seed(recipe, out, name, seed)
    return _optimized(recipe, seed=seed).model_copy(update={"output_dir": out / name / f"seed-{seed}"})


def _optimized(recipe: Compared, **changes: float) -> Compared:
    """A merge learns nothing, and stays. Raises ValidationError for a value that no recipe file could have either."""
    if isinstance(recipe, MergeRecipe):
        return recipe
    optimization = Optimization.model_validate(recipe.optimization.model_dump() | changes)
    return recipe.model_copy(update={"optimization": optimization})


def run_all(runs: Sequence[Compared], data_dir: Path, out: Path) -> int:
    """Run what is not finished and write the results after each; returns how many failed.

    One that is refused is reported, and the others go on.
    """
    done = 0
    for number, recipe in enumerate(runs, start=1):
        try:
            todo = isinstance(recipe, MergeRecipe) or not is_finished(recipe, data_dir)
            print(f"{number}/{len(runs)} {recipe.output_dir}: {'runs' if todo else 'is finished'}", flush=True)
            if isinstance(recipe, MergeRecipe):
                merge_and_measure(recipe)
            elif todo:
                train_cloze(recipe, data_dir, resume=True)
                _remove_checkpoints(recipe.output_dir)
        except (TinyRMError, OSError) as error:
            print(f"training.experiments.grid: {recipe.output_dir}: {error}", file=sys.stderr)
        else:
            done += 1
            add_result(recipe, out)
    return len(runs) - done


def is_finished(recipe: ClozeRecipe, data_dir: Path) -> bool:
    """Whether the recipe's run has ended.

    Raises InvalidInput if its folder holds a run of another recipe, from another base or on other data.
    """
    record = read_run(recipe.output_dir)
    if not record:
        return False
    ours = identity(recipe, pair_hashes(recipe, data_dir))
    record["recipe"].pop("output_dir")
    if any(record[key] != value for key, value in ours.items()):
        raise InvalidInput(
            "holds a run of another recipe, from another base or other data; remove it, or choose another --out"
        )
    return True


def add_result(recipe: Compared, out: Path) -> None:
    """OUT/results.json: for each recipe the held-out metrics of each seed, their mean and standard deviation.

    Those of earlier calls stay, unless they are of a recipe and seed that ran again.
    """
    seeds = {name: result["seeds"] for name, result in read_results(out).items()}
    of_recipe = seeds.setdefault(recipe.output_dir.parent.name, {})
    of_recipe[recipe.output_dir.name.removeprefix("seed-")] = held_out_metrics(recipe.output_dir)
    results = {name: {"seeds": each, **_spread(list(each.values()))} for name, each in seeds.items()}
    fresh = out / f"{RESULTS_FILE}.new"
    fresh.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    fresh.replace(out / RESULTS_FILE)


def held_out_metrics(folder: Path) -> dict[str, float]:
    """What a finished run measured on the pairs it held out, and how many those were; nothing about speed."""
    metrics = {
        name.removeprefix("eval_"): value
        for name, value in read_run(folder)["held_out"].items()
        if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
    }
    return {"pairs": len(read_pairs(folder / HELD_OUT_FILE)), **metrics}


def print_summary(out: Path, names: Iterable[str]) -> None:
    """A table of the recipes asked for, in that order, so that what the others are compared with is the caller's."""
    results = read_results(out)
    if asked := {name: results[name] for name in names if name in results}:
        print(table(asked))


def read_results(out: Path) -> dict[str, Any]:
    """What earlier calls wrote; nothing at first."""
    path = out / RESULTS_FILE
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return results


def _spread(metrics: list[dict[str, float]]) -> dict[str, dict[str, float] | None]:
    """Mean and sample standard deviation of each metric; there is none of one seed."""
    values = {name: [each[name] for each in metrics] for name in metrics[0]}
    return {
        "mean": {name: statistics.fmean(of_seeds) for name, of_seeds in values.items()},
        "std": {name: statistics.stdev(of_seeds) for name, of_seeds in values.items()} if len(metrics) > 1 else None,
    }


def _remove_checkpoints(folder: Path) -> None:
    """A finished run is not gone on from, and those of a grid would fill a disk."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


if __name__ == "__main__":
    sys.exit(main())
