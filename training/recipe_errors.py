"""What is wrong with a recipe, one line for each mistake: the key, what was expected, an example, the nearest key."""

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tinyrm.errors import InvalidInput

# Type of an error, as pydantic names it -> what was expected. `{...}` are filled from the error's context.
EXPECTED = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} of them",
    "string_too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "path_type": "must be a path",
}
# Beginning of such a type -> the same.
TYPES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be a text",
    "tuple": "must be a list",
    "list": "must be a list",
    "dict": "must be a mapping of keys to values",
    "model": "must be a mapping of keys to values",
    "mapping": "must be a mapping of keys to values",
}
# The class that was validated; for a union of them, value of `task` -> class.
Kinds = Mapping[str, type[BaseModel]] | type[BaseModel]
MAX_SHOWN = 60  # characters of a value that a message repeats


def invalid_recipe(error: ValidationError, kinds: Kinds, name: str) -> InvalidInput:
    """Return the mistakes of a recipe as one error with a line for each.

    name: of the file, or of what else was validated.
    """
    return InvalidInput("\n".join(f"{name}: {line}" for line in mistakes(error, kinds)))


def mistakes(error: ValidationError, kinds: Kinds) -> list[str]:
    """Return one line for each wrong key, in the order of the recipe, without the branches of unions."""
    found: dict[tuple[str, ...], list[str]] = {}
    for each in error.errors(include_url=False):
        kind, location = kinds, each["loc"]
        if isinstance(kinds, Mapping):
            kind, location = kinds.get(str(location[0]), kinds) if location else kinds, location[1:]
        path, known = resolve(kind, location)
        found.setdefault(path, []).append(describe(each, ".".join(path), known, kind))
    # A value that fits no branch of a union fails in each: what lies deeper concerns the branch that was meant.
    deeper = {path[:length] for path in found for length in range(1, len(path))}
    return [join(lines) for path, lines in found.items() if path not in deeper]


def join(lines: Sequence[str]) -> str:
    """Return what the branches of a union expect of one key as one line."""
    first, *others = dict.fromkeys(lines)
    if not others:
        return first
    key, _, _ = first.partition(" must ")
    wanted = [line.removeprefix(f"{key} ").partition(", not ")[0] for line in (first, *others)]
    given = first.partition(", not ")[2]
    return f"{key} {' or '.join(wanted)}" + (f", not {given}" if given else "")


def resolve(kind: Any, location: Sequence[int | str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the keys of a path, without the names of union branches, and the keys that its last section knows."""
    path: list[str] = []
    known: list[str] = []
    for part in location:
        fields = fields_of(kind)
        if isinstance(part, int):
            path.append(str(part))
        elif part in fields or not is_branch(part):
            path.append(part)
            known, kind = list(fields), fields[part].annotation if part in fields else kind
    return tuple(path), known


def fields_of(kind: Any) -> dict[str, FieldInfo]:
    """Return the keys of the sections that a type is or holds."""
    return {name: field for model in models_of(kind) for name, field in model.model_fields.items()}


def is_branch(part: str) -> bool:
    """Return whether a part of a path is pydantic's name of a type or a validator, not a key of the recipe."""
    return "[" in part or part in ("str", "int", "float", "bool", "none") or part[:1].isupper()


def models_of(kind: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a type is or holds: of a union, an optional, a list, a mapping."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif typing.get_origin(kind) is not None:
        for argument in typing.get_args(kind):
            yield from models_of(argument)


def describe(each: ErrorDetails, key: str, known: Sequence[str], kind: Any) -> str:
    """Return one mistake as a line: the key, what was expected, an example."""
    what, context = str(each["type"]), each.get("ctx", {})
    last = key.rpartition(".")[2]
    if what == "extra_forbidden":
        near = get_close_matches(last, known, n=1, cutoff=0.6)
        others = f"did you mean `{near[0]}`?" if near else f"the keys here are {', '.join(sorted(known))}"
        return f"`{key}` is not a key of a recipe; {others}"
    if what == "missing":
        return f"`{key}` is missing{purpose(kind, key)}"
    if what.startswith("union_tag"):
        given = "" if what.endswith("not_found") else f", not {shown(context.get('tag'))}"
        return f"`task` must be one of {', '.join(kind)}{given}; for example task: cloze"
    if what == "value_error":
        return f"`{key}`: {context['error']}" if key else str(context["error"])
    expected = EXPECTED.get(what) or next(
        (text for begin, text in TYPES.items() if what.startswith(begin)), each["msg"]
    )
    given = each["input"]
    near = (
        get_close_matches(given, re.findall(r"'([^']*)'", str(context.get("expected", ""))), n=1)
        if isinstance(given, str)
        else []
    )
    hint = f"; did you mean {near[0]}?" if near else example(kind, key)
    return f"`{key}` {expected.format(**context)}, not {shown(given)}{hint}"


def shown(value: object) -> str:
    """Return a value for a message, as YAML would nearly have it, not longer than a line bears."""
    text = "nothing" if value is None else f"{value}" if isinstance(value, int | float) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def field_at(kind: Any, key: str) -> FieldInfo | None:
    """Return the field of a dotted key; None if the path leaves the sections."""
    field = None
    for part in (part for part in key.split(".") if not part.isdecimal()):
        field = fields_of(field.annotation if field else kind).get(part)
        if field is None:
            return None
    return field


def example(kind: Any, key: str) -> str:
    """Return `; for example key: value`, from the field's examples or its default; empty without either."""
    field = field_at(kind, key)
    if field is None or key.rpartition(".")[2].isdecimal():  # of an item of a list there is none
        return ""
    sample = field.examples[0] if field.examples else field.default
    is_plain = isinstance(sample, str | int | float | bool | tuple) and str(sample) != "PydanticUndefined"
    if not is_plain or sample == ():
        return ""
    name, text = key.rpartition(".")[2], str(sample).lower() if isinstance(sample, bool) else str(sample)
    return f"; for example {name}: {text}"


def purpose(kind: Any, key: str) -> str:
    """Return what a missing key is for, and an example; without both, of which type it is."""
    field = field_at(kind, key)
    if field is None:
        return ""
    kinds: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text"}
    about = field.description.rstrip(".") if field.description else kinds.get(field.annotation, "")
    return (f": {about}" if about else "") + example(kind, key)
