"""Test that the docstring draws the tree of classes, types are stable, and a failed validation is one sentence."""

import asyncio
import inspect
import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tinyrm import errors
from tinyrm.api import NonEmpty
from tinyrm.errors import TinyRMError


def subclasses(of: type[TinyRMError]) -> list[type[TinyRMError]]:
    return [of, *(below for child in of.__subclasses__() for below in subclasses(child))]


CLASSES = [cls for cls in subclasses(TinyRMError) if cls.__module__ == errors.__name__]


def drawn_tree() -> dict[str, str]:
    """Return child -> parent as drawn: each level is indented by four columns."""
    parents: list[str] = []
    tree = {}
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        if match := re.match(r"^([│├└─ ]*)([A-Z]\w+)(?:\s{2,}|$)", line):
            depth = len(match[1]) // 4
            parents[depth:] = [match[2]]
            if depth:
                tree[match[2]] = parents[depth - 1]
    return tree


def test_docstring_draws_the_tree_as_it_is() -> None:
    assert drawn_tree() == {cls.__name__: cls.__mro__[1].__name__ for cls in CLASSES if cls is not TinyRMError}


def test_each_error_has_a_type_of_its_own() -> None:
    assert len({cls.type for cls in CLASSES}) == len(CLASSES)


def test_type_is_the_class_name_in_snake_case() -> None:
    for cls in CLASSES:
        words = re.findall(r"[A-Z][a-z]+", cls.__name__)
        assert cls is TinyRMError or cls.type == "_".join(words).lower()


class Body(BaseModel):
    names: list[NonEmpty]


def failure(value: object) -> ValidationError:
    with pytest.raises(ValidationError) as refused:
        Body.model_validate(value)
    return refused.value


@pytest.mark.parametrize(
    ("value", "options", "type_", "message"),
    [
        ({"names": ["a", 3]}, {}, "invalid_request", "names.1: Input should be a valid string"),
        ({}, {"within": ("items", 2)}, "invalid_request", "items.2.names: Field required"),
        (3, {"root": "item"}, "invalid_request", "item: Input should be a valid dictionary or instance of Body"),
        ({"names": ["\ud800"]}, {"root": "body"}, "invalid_text", "names.0: Input should be a valid string"),
    ],
)
def test_a_failed_validation_becomes_one_sentence(value: object, options: Any, type_: str, message: str) -> None:
    found = errors.from_validation(failure(value), **options)
    assert found.type == type_
    assert str(found).startswith(message)


def test_the_name_of_the_whole_value_is_left_out_of_a_path() -> None:
    first = {"loc": ("body", "names"), "type": "missing", "msg": "Field required"}
    assert str(errors.from_validation([first], root="body")) == "names: Field required"


def test_a_failed_validation_does_not_repeat_the_value() -> None:
    assert "secret" not in errors.describe(failure({"names": "secret"}))


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_comes_back_from_its_type(cls: type[TinyRMError]) -> None:
    found = errors.from_type(cls.type, "why")
    assert (type(found), str(found)) == (cls, "why")


def test_an_error_of_a_newer_version_comes_back_as_the_root_of_the_tree() -> None:
    assert type(errors.from_type("a_new_type", "why")) is TinyRMError


def test_the_first_error_of_a_task_group_is_raised_alone() -> None:
    async def run() -> None:
        with errors.first_of_group():
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(3600))
                group.create_task(fail())

    async def fail() -> None:
        raise errors.Overloaded("full")

    with pytest.raises(errors.Overloaded, match="full"):
        asyncio.run(run())
