"""Recipe files: found by name, and put together from the files that they extend.

`extends: FILE` or `extends: [FILE, ...]`, relative to the file that says it, takes those files' values first: later
files win over earlier ones, the file itself over all. Mappings are joined key by key; anything else is replaced whole.
Files whose names begin with "_" are parts and no recipes.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from tinyrm.errors import InvalidInput
from training.recipe import AnyRecipe, Recipe

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(name: str) -> Path:
    """A file as it is, or the shipped recipe of that name, as in paper/large-chat. Raises InvalidInput."""
    if Path(name).is_file():
        return Path(name)
    shipped = RECIPES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    names = recipe_names()
    near = get_close_matches(name, names, n=3, cutoff=0.4) or names
    raise InvalidInput(f"no file and no shipped recipe {name!r}; did you mean {', '.join(near)}?")


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    files = (path for path in RECIPES.rglob("*.yaml") if not path.name.startswith("_"))
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in files)


def load_recipe(path: Path) -> AnyRecipe:
    """Read a recipe and the files it extends, and validate it. Raises ValidationError naming each wrong key."""
    adapter: TypeAdapter[AnyRecipe] = TypeAdapter(Recipe)
    return adapter.validate_python(read_recipe(path))


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe file and of those it extends, not yet validated. Raises InvalidInput, OSError."""
    return _read(path.resolve(), ())


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings that are in both are merged in turn."""
    both = {
        key: merged(under[key], value) if isinstance(under.get(key), dict) and isinstance(value, dict) else value
        for key, value in over.items()
    }
    return under | both


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise InvalidInput(f"{path} extends itself, by way of {' and '.join(p.name for p in above)}")
    own = _mapping(path)
    extends = own.pop("extends", [])
    values: dict[str, Any] = {}
    for part in [extends] if isinstance(extends, str) else extends:
        values = merged(values, _read((path.parent / part).resolve(), (*above, path)))
    return merged(values, own)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InvalidInput(f"{path} is no recipe: it has to be a mapping of keys to values")
    return values
