"""Recipe files: found by name, and combined with the files that they extend.

`extends: FILE` or `extends: [FILE, ...]`, relative to the file that contains it, takes those files' values first: later
files win over earlier ones, the file itself over all. Mappings are merged key by key; anything else is replaced whole.
Files whose names begin with "_" are parts, not recipes.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from tinyrm.errors import InvalidInput
from training.recipe import AnyRecipe, Recipe
from training.recipe_errors import invalid_recipe

RECIPES = Path(__file__).parent / "recipes"
# Value of `task` -> its class.
TASKS: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["task"].annotation)[0]: kind for kind in get_args(AnyRecipe)
}


def find_recipe(name: str) -> Path:
    """Return a file as it is, or the shipped recipe of that name, such as paper/large-chat. Raises InvalidInput."""
    if Path(name).is_file():
        return Path(name)
    shipped = RECIPES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    names = recipe_names()
    near = get_close_matches(name, names, n=3, cutoff=0.4) or names
    raise InvalidInput(f"there is no file and no shipped recipe {name!r}; did you mean {', '.join(near)}?")


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    files = (path for path in RECIPES.rglob("*.yaml") if not path.name.startswith("_"))
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in files)


def load_recipe(path: Path) -> AnyRecipe:
    """Read a recipe and the files it extends, and validate it. Raises InvalidInput with a line for each wrong key."""
    return to_recipe(read_recipe(path), str(path))


def to_recipe(values: dict[str, Any], name: str) -> AnyRecipe:
    """Validate the values of a recipe. name: of its file, for the InvalidInput with a line for each wrong key."""
    adapter: TypeAdapter[AnyRecipe] = TypeAdapter(Recipe)
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        raise invalid_recipe(error, TASKS, name) from error


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the values of a recipe file and of those it extends, not yet validated. Raises InvalidInput, OSError."""
    return read_extended(path.resolve(), ())


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings key by key; `over` wins, and mappings that are in both are merged in turn."""
    both = {
        key: merge(under[key], value) if isinstance(under.get(key), dict) and isinstance(value, dict) else value
        for key, value in over.items()
    }
    return under | both


def read_extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """above: the files that led to this one, outermost first."""
    if path in above:
        raise InvalidInput(f"{path} extends itself, by way of {' and '.join(p.name for p in above)}")
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(own, dict):
        raise InvalidInput(f"{path} is not a recipe: it must be a mapping of keys to values")
    extends = own.pop("extends", [])
    parts = [extends] if isinstance(extends, str) else extends
    if not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
        raise InvalidInput(f"{path}: `extends` must be the path of a recipe or a list of paths, not {extends!r}")
    values: dict[str, Any] = {}
    for part in parts:
        values = merge(values, read_extended((path.parent / part).resolve(), (*above, path)))
    return merge(values, own)
