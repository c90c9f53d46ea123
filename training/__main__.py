"""python -m training RECIPE: preference pairs or text in, a checkpoint or an adapter out."""

import argparse
import logging
import sys
from pathlib import Path

import yaml
from pydantic import ValidationError

from tinyrm.errors import TinyRMError
from training.loading import find_recipe, load_recipe
from training.recipe import ClozeRecipe, DistilRecipe, MergeRecipe, PretrainRecipe, SftRecipe


def main() -> int:
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        path = find_recipe(arguments.name or arguments.recipe)
        if arguments.dry_run:
            dry_run(path, arguments.data)
        else:
            run(path, arguments.data, resume=arguments.resume)
    except (TinyRMError, ValidationError, OSError) as error:
        print(f"training: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("recipe", nargs="?", help="RECIPE.yaml, or the name of one in training/recipes/")
    which.add_argument("--recipe", dest="name", metavar="NAME", help="the same")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the recipe's data files")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    parser.add_argument("--dry-run", action="store_true", help="print what the recipe would do, without network")
    return parser


def run(recipe_path: Path, data_dir: Path, *, resume: bool) -> None:
    """Run one recipe. Stages import what they need, so that a tokenizer is trained without loading a model."""
    recipe = load_recipe(recipe_path)
    if isinstance(recipe, DistilRecipe):  # before ClozeRecipe, which it is one of
        from training.stages.distil import train_distil

        train_distil(recipe, data_dir, resume=resume)
    elif isinstance(recipe, ClozeRecipe):
        from training.stages.cloze import train_cloze

        train_cloze(recipe, data_dir, resume=resume)
    elif isinstance(recipe, PretrainRecipe):
        from training.stages.pretrain import pretrain

        pretrain(recipe, data_dir, resume=resume)
    elif isinstance(recipe, SftRecipe):
        from training.stages.sft import train_sft

        train_sft(recipe, data_dir, resume=resume)
    elif isinstance(recipe, MergeRecipe):
        from training.stages.merge import merge_specialists

        merge_specialists(recipe)
    else:
        from training.stages.tokenizer import train_tokenizer

        train_tokenizer(recipe, data_dir)


def dry_run(recipe_path: Path, data_dir: Path) -> None:
    """Print the plan of a cloze recipe; of another, the recipe as it is understood."""
    recipe = load_recipe(recipe_path)
    if isinstance(recipe, ClozeRecipe):
        from training.experiments.plan import plan
        from training.experiments.plan_text import render

        print(render(plan(recipe, data_dir), recipe_path))
    else:
        print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), end="")


if __name__ == "__main__":
    sys.exit(main())
