"""Turn preference pairs into a model: a bundle from a file of pairs, or what a recipe makes.

`train` trains on pairs or runs a recipe, and may be left out; `compare` runs recipes with several seeds; `sweep`
searches hyperparameters; `plan` prints what a recipe would do and cost; `curves` shows how runs learnt; `data` counts
what data sets give.
"""

import json
import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from tinyrm.command_line import parse
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.output import standard_output
from training.loading import find_recipe, load_recipe, recipe_names
from training.options import Compare, Curves, Data, ModelOptions, PairOptions, Plan, Sweep, Train
from training.recipe import AnyRecipe, ClozeRecipe, MergeRecipe, PretrainRecipe, SftRecipe

COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "plan": Plan,
    "curves": Curves,
    "compare": Compare,
    "sweep": Sweep,
    "data": Data,
}

# Commands whose help lists the recipes.
TAKE_RECIPES = ("train", "plan", "compare", "sweep")

# As launchers set the number of processes: torchrun and accelerate, MPICH, Open MPI, MVAPICH.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# And the number of this one.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
# Seconds that other processes leave the main one to report what all of them found, until the launcher ends them.
MAIN_REPORTS_S = 10

PAPER_PROTOCOL = """\
########################################################################################################
# --paper-protocol: hyperparameters are chosen on {path}.
# Whatever is reported on these pairs afterwards is a selected figure, not a measured one. This is for
# replication of the paper alone; nothing that it selects may be compared with other models.
########################################################################################################"""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m training") -> int:
    """Run a command line, by default this process's. Return the exit code; one of several processes ends with it."""
    code = run_command(arguments, prog)
    if launched_processes() == 1:
        return code
    from training.processes import end

    return end(code)


def run_command(arguments: Sequence[str] | None, prog: str) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    command, given_words = (words[0], words[1:]) if words and words[0] in COMMANDS else ("train", words)
    full = prog if command == "train" else f"{prog} {command}"
    options = parse(
        COMMANDS[command], given_words, prog=full, more_help=list_recipes if command in TAKE_RECIPES else str
    )
    name = f"training {command}" if prog.startswith("python") else prog if command == "train" else f"{prog} {command}"
    set_up_log()
    runs: dict[type[Any], Callable[[Any], int]] = {
        Train: run_train,
        Compare: run_compare,
        Sweep: run_sweep,
        Plan: lambda plan: dry_run(find_recipe(plan.recipe), plan),
        Curves: run_curves,
        Data: run_data,
    }
    try:
        if not isinstance(options, Train):
            refuse_several(f"training {command}")
        return runs[type(options)](options)
    except BrokenPipeError:
        raise  # of standard output, which is no longer read
    except (TinyRMError, OSError) as error:
        if this_rank():
            time.sleep(MAIN_REPORTS_S)
        for line in str(error).splitlines():
            print(f"{name}: {line}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    except KeyboardInterrupt:
        again = "; the same command with --resume continues from the newest checkpoint" if command == "train" else ""
        print(f"{name}: interrupted{again}", file=sys.stderr)
        return 130


def list_recipes() -> str:
    """Return the names of the recipes that come with TinyRM, a line for each of their folders."""
    folders: dict[str, list[str]] = {}
    indents: Any = {"initial_indent": "  ", "subsequent_indent": "    ", "break_on_hyphens": False}
    for name in recipe_names():
        folder, _, rest = name.rpartition("/")
        folders.setdefault(folder, []).append(rest)
    lines = [
        textwrap.fill(f"{f'{folder}/: ' if folder else ''}{', '.join(names)}", 100, **indents)
        for folder, names in sorted(folders.items())
    ]
    return "\n".join(["recipes:", *lines])


def set_up_log() -> None:
    """Log what this project does, on the main process, with bars on a terminal only."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for package in ("training", "export", "evaluation", "tinyrm"):  # libraries report every step of theirs
        logging.getLogger(package).setLevel(logging.INFO if this_rank() == 0 else logging.WARNING)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars would fill a log file


def run_train(options: Train) -> int:
    """Run a recipe, or the whole way from pairs to a bundle. Raises InvalidInput."""
    if options.resume and options.fresh:
        raise InvalidInput("--resume continues a run and --fresh replaces it; give one of them")
    recipe = recipe_of(options)
    if recipe is None:
        from training.finetune.command import finetune

        return finetune(options)
    if options.dry_run:
        return dry_run(recipe, options)
    run(recipe, options.data, resume=options.resume, fresh=options.fresh)
    if options.json and this_rank() == 0:
        print(json.dumps({"recipe": str(recipe), "output_dir": str(load_recipe(recipe).output_dir)}))
    return 0


def recipe_of(options: Train) -> Path | None:
    """Return the recipe that a command names; None if it names pairs. Raises InvalidInput if it names neither."""
    words = options.words or ((options.model.recipe,) if options.model.recipe else ())
    if not words:
        raise InvalidInput("name your pairs, such as my.jsonl, or one recipe: RECIPE.yaml, or one of training/recipes/")
    first = words[0]
    if not (first.endswith((".yaml", ".yml")) or first in recipe_names()):
        if Path(first).exists() or options.model.base or options.model.out:
            return None
        raise InvalidInput(unknown_word(first))
    others = ", ".join([*words[1:], *given(options)])
    if others:
        raise InvalidInput(
            f"{first} is a recipe, which runs as it is, and {others} belongs to a command that names pairs: name the "
            f"pairs and --recipe {first}"
        )
    return find_recipe(first)


def given(options: Train) -> list[str]:
    """Return the options of a command that belong to pairs, as they are written."""
    groups = (options.pairs, PairOptions()), (options.model, ModelOptions())
    names = [
        f"--{field.name.replace('_', '-')}"
        for group, default in groups
        for field in fields(group)
        if getattr(group, field.name) != getattr(default, field.name)
    ]
    return [name for name in names if options.words or name != "--recipe"]


def unknown_word(word: str) -> str:
    """Return the error for a first word that is no file, no recipe and no command."""
    folder = Path(word).parent
    beside = [str(path) for path in folder.iterdir()] if folder.is_dir() else []
    near = get_close_matches(word, [*COMMANDS, *recipe_names(), *beside], n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    from_hub = " A data set on the hub needs the name of the bundle: --out models/NAME." if word.count("/") == 1 else ""
    return (
        f"{word} is no file or folder here, no command ({', '.join(COMMANDS)}), and no recipe (RECIPE.yaml, or a name "
        f"in training/recipes/){hint or '.'}{from_hub}"
    )


def run(recipe_path: Path, data_dir: Path, *, resume: bool, fresh: bool = False) -> None:
    """Run one recipe. Each stage imports what it needs, so a tokenizer is trained without loading a model."""
    recipe = load_recipe(recipe_path)
    if isinstance(recipe, ClozeRecipe | PretrainRecipe | SftRecipe):
        from training.output import alone_in
        from training.stages.learning import run_learning

        with alone_in(recipe.output_dir):
            run_learning(recipe, data_dir, resume=resume, fresh=fresh)
    elif isinstance(recipe, MergeRecipe):
        refuse_several("merging")
        from training.stages.merge import merge_specialists

        merge_specialists(recipe, fresh=fresh)
    else:
        refuse_several("training a tokenizer")
        from training.stages.tokenizer import train_tokenizer

        train_tokenizer(recipe, data_dir, fresh=fresh)


def dry_run(path: Path, options: Plan | Train) -> int:
    """Print the plan of a recipe for rewards; of any other, the recipe with its defaults."""
    recipe = load_recipe(path)
    if options.json:
        print(json.dumps({"recipe": recipe.model_dump(mode="json")} | figures_of(recipe, options)))
    elif isinstance(recipe, ClozeRecipe):
        from training.experiments.dry_run import describe

        hardware, price = options.hardware, options.price_per_hour
        print(describe(recipe, options.data, path=path, hardware=hardware, price_per_hour=price))
    else:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), end="")
    return 0


def figures_of(recipe: AnyRecipe, options: Plan | Train) -> dict[str, Any]:
    """Return what the plan of a recipe for rewards adds to the recipe."""
    if not isinstance(recipe, ClozeRecipe):
        return {}
    from training.experiments.dry_run import figures

    return figures(recipe, options.data, hardware=options.hardware, price_per_hour=options.price_per_hour)


def run_compare(options: Compare) -> int:
    from training.experiments.grid import comparison_table, load_all, planned, read_results, run_all, varied

    variants = varied(load_all(options.recipes), options.peak_lrs, options.max_steps)
    failed = run_all(planned(variants, options.out, options.seeds), options.data, options.out)
    # In the order of the command line: the first recipe is what the others are compared with.
    results = read_results(options.out)
    measured = {name: results[name] for name in variants if name in results}
    if options.json:
        print(json.dumps({"recipes": measured}))
    elif measured:
        print(comparison_table(measured))
    return 1 if failed else 0


def run_sweep(options: Sweep) -> int:
    from training.experiments.sweep import Space, sweep

    path = find_recipe(options.recipe)
    recipe = load_recipe(path)
    if type(recipe) is not ClozeRecipe:
        raise InvalidInput(f"{path} has task {recipe.task!r}; only recipes of task 'cloze' are swept")
    if options.paper_protocol:
        print(PAPER_PROTOCOL.format(path=options.paper_protocol), file=sys.stderr)
    study = sweep(recipe, Space.load(options.space) if options.space else Space(), options)
    best = study.best_trial
    objective = study.user_attrs["identity"]["objective"]
    if options.json:
        print(json.dumps({"trial": best.number, "objective": objective, "value": best.value, "params": best.params}))
    else:
        print(f"trial {best.number}: {objective} {best.value:.4f} with {best.params}")
    return 0


def run_curves(options: Curves) -> int:
    from training.curves import describe, read_all, verdict

    if not options.runs:
        raise InvalidInput("name the output folder of a run, or of several")
    runs = read_all(options.runs)
    if options.out:
        try:
            from training.curve_plots import draw
        except ModuleNotFoundError as error:
            raise InvalidInput(f"a picture needs {error.name}: pip install 'tinyrm[evaluation]'") from error
        draw(runs, options.out)
    if options.json:
        print(json.dumps({"runs": [asdict(run) | {"verdict": verdict(run)} for run in runs]}))
    else:
        for run in runs:
            print(describe(run))
    return 0


def run_data(options: Data) -> int:
    from training.data_report import count_pairs, parse_sources, write_conversations

    if options.conversations:
        threads = write_conversations(parse_sources(options.sources), options.data, options.write)
        parts = iter([(f"{threads} conversations in {options.write}", {"conversations": threads})])
    else:
        parts = count_pairs(options)
    figures: dict[str, Any] = {}
    for paragraph, counted in parts:
        figures |= counted
        if not options.json:
            print(paragraph)
    if options.json:
        print(json.dumps(figures))
    return 0


def this_rank() -> int:
    """Return the number of this process among those that a launcher started; 0 is the main one."""
    ranks = (os.environ.get(name, "") for name in RANKS)
    return next((int(rank) for rank in ranks if rank.isdecimal()), 0)


def launched_processes() -> int:
    """Return how many processes a launcher started; 1 without a launcher."""
    sizes = (os.environ.get(name, "") for name in WORLD_SIZES)
    return next((int(size) for size in sizes if size.isdecimal()), 1)


def refuse_several(what: str) -> None:
    """Raise InvalidInput if a launcher started several processes for something that one process does."""
    count = launched_processes()
    if count > 1:
        raise InvalidInput(
            f"{what} runs in one process, and {count} were started; start it with `python -m training`, without a "
            "launcher"
        )


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
