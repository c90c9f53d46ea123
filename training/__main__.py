"""python -m training RECIPE.yaml: preference pairs or text in, a checkpoint or an adapter out."""

import argparse
import logging
from pathlib import Path

from training.config import ClozeRecipe, PretrainRecipe, load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a YAML file, see training/recipes/")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the recipe's data files")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    run(arguments.recipe, arguments.data, resume=arguments.resume)


def run(recipe_path: Path, data_dir: Path, *, resume: bool) -> None:
    """Run one recipe. Stages import what they need, so that a tokenizer is trained without loading a model."""
    recipe = load_recipe(recipe_path)
    if isinstance(recipe, ClozeRecipe):
        from training.cloze import train_cloze

        train_cloze(recipe, data_dir, resume=resume)
    elif isinstance(recipe, PretrainRecipe):
        from training.pretrain import pretrain

        pretrain(recipe, data_dir, resume=resume)
    else:
        from training.tokenizer import train_tokenizer

        train_tokenizer(recipe, data_dir)


if __name__ == "__main__":
    main()
