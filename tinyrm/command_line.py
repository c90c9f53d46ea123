"""Make a command line from a dataclass: each field is an option, and the docstring below it is its help."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

T = TypeVar("T")

# `--flag` alone, without a `--no-flag` beside it.
CONFIG = (tyro.conf.FlagCreatePairsOff,)


def _number(kind: Callable[[str], T], metavar: str, is_valid: Callable[[T], bool], rule: str) -> Any:
    """Return the type of a numeric option that accepts only some numbers.

    is_valid: whether a number is accepted.
    rule: the error text for any other number.
    """

    def convert(words: list[str]) -> T:
        if not is_valid(value := kind(words[0])):
            raise ValueError(rule)
        return value

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=convert,
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [f"{value:g}"],
    )


Positive = Annotated[int, _number(int, "INT", lambda n: n > 0, "must be at least 1")]
Count = Annotated[int, _number(int, "INT", lambda n: n >= 0, "must be at least 0")]
Seconds = Annotated[float, _number(float, "SECONDS", lambda s: 0 < s < math.inf, "must be above 0")]
Share = Annotated[float, _number(float, "FLOAT", lambda x: 0 <= x < math.inf, "must be at least 0")]


def parse(options: type[T], arguments: Sequence[str] | None = None, *, prog: str) -> T:
    """Return `options` filled from the command line.

    arguments: without the program's name; None takes those of this process.
    prog: name of the command in its help, such as `tinyrm export`.

    Exits with 2 after one message if the arguments are invalid, and with 0 after `--help`.
    """
    return tyro.cli(options, prog=prog, args=arguments, config=CONFIG)


def parse_subcommand(
    commands: Mapping[str, type[Any]], arguments: Sequence[str] | None = None, *, prog: str, description: str
) -> Any:
    """Return an instance of the dataclass whose name in `commands` is the first argument. Exits as `parse` does."""
    return tyro.extras.subcommand_cli_from_dict(
        dict(commands), prog=prog, description=description, args=arguments, config=CONFIG
    )
