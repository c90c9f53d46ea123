"""Turn preference pairs or text into a checkpoint or an adapter.

`train` runs a recipe and may be left out; `compare` runs several with several seeds; `sweep` searches hyperparameters;
`plan` prints what a recipe would do; `data` counts what data sets give.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tinyrm.command_line import parse_subcommand
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.output import standard_output
from training.loading import find_recipe, load_recipe
from training.options import Compare, Data, Plan, Sweep, Train
from training.recipe import ClozeRecipe, DistilRecipe, MergeRecipe, PretrainRecipe, SftRecipe

COMMANDS: dict[str, type[Any]] = {"train": Train, "compare": Compare, "sweep": Sweep, "plan": Plan, "data": Data}

# As launchers set the number of processes: torchrun and accelerate, MPICH, Open MPI, MVAPICH.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

PAPER_PROTOCOL = """\
########################################################################################################
# --paper-protocol: hyperparameters are chosen on {path}.
# Whatever is reported on these pairs afterwards is a selected figure, not a measured one. This is for
# replication of the paper alone; nothing that it selects may be compared with other models.
########################################################################################################"""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m training") -> int:
    """Run a command line, by default this process's. Return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in (*COMMANDS, "-h", "--help"):
        words.insert(0, "train")
    options = parse_subcommand(COMMANDS, words, prog=prog, description=str(__doc__))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    runs: dict[type[Any], Callable[[Any], int]] = {
        Train: run_train,
        Compare: run_compare,
        Sweep: run_sweep,
        Plan: lambda plan: dry_run(find_recipe(plan.recipe), plan.data),
        Data: run_data,
    }
    try:
        if not isinstance(options, Train):
            refuse_several(f"training {words[0]}")
        return runs[type(options)](options)
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, each['loc'])) or 'task'}: {each['msg']}" for each in error.errors())
        print(f"training {words[0]}: {'; '.join(reasons)}", file=sys.stderr)
    except (TinyRMError, OSError) as error:
        print(f"training {words[0]}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"training {words[0]}: interrupted", file=sys.stderr)
        return 130
    return 1


def run_train(options: Train) -> int:
    if bool(options.recipe) == bool(options.named):
        raise InvalidInput("name one recipe: RECIPE.yaml, or one of training/recipes/")
    path = find_recipe(options.recipe or options.named)
    if options.dry_run:
        return dry_run(path, options.data)
    if options.resume and options.fresh:
        raise InvalidInput("--resume continues a run and --fresh replaces it; give one of them")
    run(path, options.data, resume=options.resume, fresh=options.fresh)
    return 0


def run(recipe_path: Path, data_dir: Path, *, resume: bool, fresh: bool = False) -> None:
    """Run one recipe. Each stage imports what it needs, so a tokenizer is trained without loading a model."""
    recipe = load_recipe(recipe_path)
    if isinstance(recipe, DistilRecipe):  # before ClozeRecipe, its base class
        from training.stages.distil import train_distil

        train_distil(recipe, data_dir, resume=resume, fresh=fresh)
    elif isinstance(recipe, ClozeRecipe):
        from training.stages.cloze import train_cloze

        train_cloze(recipe, data_dir, resume=resume, fresh=fresh)
    elif isinstance(recipe, PretrainRecipe):
        from training.stages.pretrain import pretrain

        pretrain(recipe, data_dir, resume=resume, fresh=fresh)
    elif isinstance(recipe, SftRecipe):
        from training.stages.sft import train_sft

        train_sft(recipe, data_dir, resume=resume, fresh=fresh)
    elif isinstance(recipe, MergeRecipe):
        refuse_several("merging")
        from training.stages.merge import merge_specialists

        merge_specialists(recipe, fresh=fresh)
    else:
        refuse_several("training a tokenizer")
        from training.stages.tokenizer import train_tokenizer

        train_tokenizer(recipe, data_dir, fresh=fresh)


def dry_run(recipe_path: Path, data_dir: Path) -> int:
    """Print the plan of a recipe for rewards; of any other, the recipe with its defaults."""
    recipe = load_recipe(recipe_path)
    if isinstance(recipe, ClozeRecipe):
        from training.experiments.plan import plan, render

        planned = plan(recipe, data_dir)
        print(render(planned, recipe_path))
        if isinstance(recipe, DistilRecipe):
            from training.experiments.scoring_cost import render_teachers

            print(f"\n{render_teachers(planned, recipe)}")
    else:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), end="")
    return 0


def run_compare(options: Compare) -> int:
    from training.experiments.grid import comparison_table, load_all, planned, read_results, run_all, varied

    variants = varied(load_all(options.recipes), options.peak_lrs, options.max_steps)
    failed = run_all(planned(variants, options.out, options.seeds), options.data, options.out)
    # In the order of the command line: the first recipe is what the others are compared with.
    results = read_results(options.out)
    if measured := {name: results[name] for name in variants if name in results}:
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
    print(f"trial {best.number}: {study.user_attrs['identity']['objective']} {best.value:.4f} with {best.params}")
    return 0


def run_data(options: Data) -> int:
    from training.data_report import count_pairs, parse_sources, write_conversations

    if options.conversations:
        print(write_conversations(parse_sources(options.sources), options.data, options.write))
    else:
        for paragraph in count_pairs(options):
            print(paragraph)
    return 0


def refuse_several(what: str) -> None:
    """Raise InvalidInput if a launcher started several processes for something that one process does."""
    sizes = (os.environ.get(name, "") for name in WORLD_SIZES)
    count = next((int(size) for size in sizes if size.isdecimal()), 1)
    if count > 1:
        raise InvalidInput(
            f"{what} runs in one process, and {count} were started; start it with `python -m training`, without a "
            "launcher"
        )


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
