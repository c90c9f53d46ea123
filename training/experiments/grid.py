"""Compare recipes: each one with several seeds, and what they measured in one file and one table.

A grid that was stopped continues: finished runs are skipped, an interrupted one resumes.
"""

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError
from scipy.stats import t
from tabulate import tabulate
from transformers import EvalPrediction

from tinyrm.encoding import Encoder
from tinyrm.engines.torch_checkpoint import TorchEngine
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.files import write_atomically
from tinyrm.modernbert.checkpoint import load_masked_lm, load_tokenizer
from tinyrm.pairs import PreferencePair, read_pairs
from tinyrm.scorer import Scorer
from tinyrm.spec import HELD_OUT_FILE, Spec, read_run
from training.data.mixture import load_all as load_pairs
from training.data.soft import has_labels
from training.data.source import Source
from training.loading import find_recipe, load_recipe
from training.output import identity, what_is_learnt, write_run
from training.recipe import ClozeRecipe, DistilRecipe, MergeRecipe, Optimization
from training.recipe_errors import invalid_recipe
from training.stages.cloze import labelled_metrics, preference_metrics, train_cloze
from training.stages.distil import train_distil
from training.stages.merge import merge_specialists

RESULTS_FILE = "results.json"
COLUMNS = ("recipe", "seeds", "accuracy", "difference", "one order", "swap consistency")

Compared = ClozeRecipe | MergeRecipe
# Seed -> metrics, as the results file has them.
Seeds = Mapping[str, Mapping[str, float]]


def load_all(names: Iterable[str]) -> dict[str, Compared]:
    """Return recipes by the names of their files.

    Raises InvalidInput for two recipes of one name, for one of another task, and for an empty list.
    """
    recipes: dict[str, Compared] = {}
    for path in map(find_recipe, names):
        recipe = load_recipe(path)
        if not isinstance(recipe, ClozeRecipe | MergeRecipe):
            raise InvalidInput(
                f"{path} is of task {recipe.task}; a grid compares recipes of task cloze, distil and merge"
            )
        if path.stem in recipes:
            raise InvalidInput(f"two recipes are called {path.stem}; rename one, because results go by the name")
        recipes[path.stem] = recipe
    if not recipes:
        raise InvalidInput("name at least one recipe, such as experiments/cloze")
    return recipes


def varied(recipes: Mapping[str, Compared], peak_lrs: Sequence[float], max_steps: int | None) -> dict[str, Compared]:
    """Return the recipes, shortened if `max_steps` is given; with `peak_lrs` each at each rate, named NAME@RATE."""
    short = {} if max_steps is None else {"max_steps": max_steps}
    if not peak_lrs:
        return {name: with_optimization(recipe, **short) for name, recipe in recipes.items()}
    return {
        f"{name}@{lr:g}": with_optimization(recipe, peak_lr=lr, **short)
        for name, recipe in recipes.items()
        for lr in peak_lrs
    }


def with_optimization(recipe: Compared, **changes: float) -> Compared:
    """Return the recipe with other settings of its optimizer; a merge has none and stays.

    Raises InvalidInput for a value that is not allowed in a recipe file either.
    """
    if isinstance(recipe, MergeRecipe):
        return recipe
    try:
        optimization = Optimization.model_validate(recipe.optimization.model_dump() | changes)
    except ValidationError as error:
        raise invalid_recipe(error, Optimization, "the grid") from error
    return recipe.model_copy(update={"optimization": optimization})


def planned(recipes: Mapping[str, Compared], out: Path, seeds: Iterable[int]) -> list[Compared]:
    """Return each recipe with each seed, written to OUT/NAME/seed-SEED; a merge takes the specialists of its seed.

    Ordered by seed, so that a grid stopped early has compared everything once; within a seed, merges come last.
    """
    runs: list[Compared] = []
    for seed in dict.fromkeys(seeds):
        for name, recipe in sorted(recipes.items(), key=lambda item: isinstance(item[1], MergeRecipe)):
            changes: dict[str, Any] = {"output_dir": out / name / f"seed-{seed}"}
            if isinstance(recipe, MergeRecipe):
                changes["seed"] = seed
                changes["specialists"] = tuple(
                    each.model_copy(update={"path": str(out / Path(each.path).name / f"seed-{seed}")})
                    for each in recipe.specialists
                )
            runs.append(with_optimization(recipe, seed=seed).model_copy(update=changes))
    return runs


def run_all(runs: Sequence[Compared], data_dir: Path, out: Path) -> int:
    """Run the unfinished ones, write the results after each run, and return how many failed.

    A run that is refused is reported, and the others go on.
    """
    done = 0
    hash_data = cache(lambda sources: load_pairs(sources, data_dir).sha256)
    for number, recipe in enumerate(runs, start=1):
        try:
            todo = isinstance(recipe, MergeRecipe) or not is_finished(recipe, hash_data)
            print(f"{number}/{len(runs)} {recipe.output_dir}: {'runs' if todo else 'is finished'}", file=sys.stderr)
            if isinstance(recipe, MergeRecipe):
                merge_and_measure(recipe)
            elif todo:
                if isinstance(recipe, DistilRecipe):
                    train_distil(recipe, data_dir, resume=True)
                else:
                    train_cloze(recipe, data_dir, resume=True)
                # A finished run is not continued, and the checkpoints of a grid would fill a disk.
                for checkpoint in recipe.output_dir.glob("checkpoint-*"):
                    shutil.rmtree(checkpoint)
        except (TinyRMError, OSError) as error:
            print(f"training compare: {recipe.output_dir}: {error}", file=sys.stderr)
        else:
            done += 1
            add_result(recipe, out)
    return len(runs) - done


def is_finished(recipe: ClozeRecipe, hash_data: Callable[[tuple[Source, ...]], dict[str, str]]) -> bool:
    """Return whether the recipe's run has ended.

    hash_data: returns `Mixture.sha256` of sources.

    Raises InvalidInput if its folder holds a run of another recipe, from another base or on other data.
    """
    record = read_run(recipe.output_dir)
    if not record:
        return False
    record["recipe"] = what_is_learnt(record["recipe"])
    if any(record.get(key) != value for key, value in identity(recipe, hash_data(recipe.sources)).items()):
        raise InvalidInput(
            "the folder holds a run of another recipe, from another base or on other data; remove it, or choose "
            "another --out"
        )
    return True


def merge_and_measure(recipe: MergeRecipe) -> None:
    """Merge, measure on the specialists' held-out pairs, and add to the record what a training writes.

    Raises InvalidInput.
    """
    merge_specialists(recipe)
    held_out = recipe.output_dir / HELD_OUT_FILE
    if not held_out.is_file():
        raise InvalidInput(
            "the specialists did not hold out pairs by one seed and share, so there are none to measure on"
        )
    metrics = {
        f"eval_{name}": value for name, value in measure(recipe.output_dir, read_pairs(held_out, ties=True)).items()
    }
    write_run(recipe.output_dir, read_run(recipe.output_dir) | {"held_out": metrics})


def measure(folder: Path, pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Return what training measures of a cloze checkpoint, except the loss."""
    spec = Spec.load(folder)
    tokenizer, special = load_tokenizer(str(folder))
    encoder = Encoder(tokenizer, spec.template, special, spec.max_tokens)
    engine = TorchEngine(load_masked_lm(str(folder)), special, encoder.label_ids)
    instructions = [spec.instruction(pair.domain, or_default=True) for pair in pairs]
    preferences = Scorer(encoder, engine, spec).score([pair.comparison() for pair in pairs], instructions)
    margins = np.array([preference.order_margins for preference in preferences])
    # A margin is towards the chosen response; training counts towards the first one.
    prediction = EvalPrediction(margins * [1, -1], np.array([pair.target for pair in pairs]))
    return (labelled_metrics if has_labels(pairs) else preference_metrics)(prediction)


def add_result(recipe: Compared, out: Path) -> None:
    """Update OUT/results.json: per recipe the held-out metrics of each seed, their mean and standard deviation.

    Results of earlier calls stay, unless the same recipe and seed ran again.
    """
    folder = recipe.output_dir
    metrics = {
        name.removeprefix("eval_"): value
        for name, value in read_run(folder)["held_out"].items()
        if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
    }
    results = read_results(out)
    seeds = results.get(folder.parent.name, {"seeds": {}})["seeds"]
    seeds[folder.name.removeprefix("seed-")] = {"pairs": len(read_pairs(folder / HELD_OUT_FILE, ties=True)), **metrics}
    values = {name: [of_seed[name] for of_seed in seeds.values()] for name in next(iter(seeds.values()))}
    several = len(seeds) > 1
    results[folder.parent.name] = {
        "seeds": seeds,
        "mean": {name: statistics.fmean(each) for name, each in values.items()},
        "std": {name: statistics.stdev(each) for name, each in values.items()} if several else None,
    }
    write_atomically(out / RESULTS_FILE, json.dumps(results, indent=2) + "\n")


def read_results(out: Path) -> dict[str, Any]:
    """Return what earlier calls wrote; empty at first."""
    path = out / RESULTS_FILE
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return results


class Mean(NamedTuple):
    """A mean over seeds and half the width of its 95 % interval; None for one seed, which has no spread."""

    value: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Use Student's t: three seeds are a poor estimate of the spread, and the interval is accordingly wide."""
        if len(values) < 2:
            return cls(values[0], None)
        error = statistics.stdev(values) / len(values) ** 0.5
        return cls(statistics.fmean(values), float(t.ppf(0.975, len(values) - 1)) * error)

    def text(self, sign: str = "") -> str:
        """Return the mean in per cent, as points."""
        spread = "" if self.half_width is None else f" ± {100 * self.half_width:.1f}"
        return f"{100 * self.value:{sign}.1f}{spread}"


def difference(seeds: Seeds, baseline: Seeds, metric: str) -> Mean | None:
    """Return the mean difference, seed by seed; None if no seed is shared.

    One seed holds out the same pairs for every recipe, so how hard those are cancels.
    """
    shared = [seed for seed in seeds if seed in baseline]
    return Mean.of([seeds[s][metric] - baseline[s][metric] for s in shared]) if shared else None


def comparison_table(results: Mapping[str, Any]) -> str:
    """Return a Markdown table; the first recipe is what the others are compared with."""
    baseline: Seeds = next(iter(results.values()))["seeds"]
    rows = []
    for name, result in results.items():
        seeds: Seeds = result["seeds"]
        accuracy, one_order, consistency = (
            Mean.of([metrics[key] for metrics in seeds.values()]).text()
            for key in ("accuracy", "accuracy_one_order", "swap_consistency")
        )
        gap = None if seeds is baseline else difference(seeds, baseline, "accuracy")
        rows.append((name, len(seeds), accuracy, gap.text("+") if gap else "", one_order, consistency))
    return tabulate(rows, COLUMNS, tablefmt="pipe", disable_numparse=True)
