"""Run a recipe that trains a model, by its task. Each stage imports what it needs, and only when it runs."""

from pathlib import Path

from training.recipe import ClozeRecipe, DistilRecipe, PretrainRecipe, SftRecipe


def run_learning(
    recipe: ClozeRecipe | PretrainRecipe | SftRecipe, data_dir: Path, *, resume: bool, fresh: bool
) -> None:
    """Train and write what the recipe makes; resume, fresh: as `training.output.prepare_output` has them."""
    if isinstance(recipe, DistilRecipe):  # before ClozeRecipe, its base class
        from training.stages.distil import train_distil

        train_distil(recipe, data_dir, resume=resume, fresh=fresh)
    elif isinstance(recipe, ClozeRecipe):
        from training.stages.cloze import train_cloze

        train_cloze(recipe, data_dir, resume=resume, fresh=fresh)
    elif isinstance(recipe, PretrainRecipe):
        from training.stages.pretrain import pretrain

        pretrain(recipe, data_dir, resume=resume, fresh=fresh)
    else:
        from training.stages.sft import train_sft

        train_sft(recipe, data_dir, resume=resume, fresh=fresh)
