"""Any recipe, told by its `task`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from training.config import ClozeRecipe, PretrainRecipe, TokenizerRecipe
from training.recipe_files import read_recipe
from training.stage_recipes import DistilRecipe, MergeRecipe, SftRecipe

AnyRecipe = TokenizerRecipe | PretrainRecipe | ClozeRecipe | SftRecipe | DistilRecipe | MergeRecipe
Recipe = Annotated[AnyRecipe, Field(discriminator="task")]


def load_recipe(path: Path) -> AnyRecipe:
    """Read a recipe and the files it extends, and validate it. Raises ValidationError naming each wrong key."""
    adapter: TypeAdapter[AnyRecipe] = TypeAdapter(Recipe)
    return adapter.validate_python(read_recipe(path))
