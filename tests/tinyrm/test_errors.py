"""The error tree drawn in the docstring is the tree of classes, and every class has a stable name."""

import inspect
import re

from tinyrm import errors
from tinyrm.errors import TinyRMError


def subclasses(of: type[TinyRMError]) -> list[type[TinyRMError]]:
    return [of, *(below for child in of.__subclasses__() for below in subclasses(child))]


CLASSES = [cls for cls in subclasses(TinyRMError) if cls.__module__ == errors.__name__]


def drawn_tree() -> dict[str, str]:
    """Child -> parent as drawn: each level is indented by four columns."""
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
