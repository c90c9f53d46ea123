"""Make a command line from a dataclass: each field is an option, and the docstring below it is its help."""

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro import _fmtlib  # it has no public switch for colours
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

T = TypeVar("T")

EXAMPLES = "\nExamples:\n"
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


def option(metavar: str) -> Any:
    """Return how to show an option that has no default, or whose help explains it."""
    return arg(metavar=metavar, help_behavior_hint="")


# An option without a value, whose default is that it is not given.
Flag = Annotated[bool, arg(help_behavior_hint="")]


def parse(
    options: type[T],
    arguments: Sequence[str] | None = None,
    *,
    prog: str,
    more_help: Callable[[], str] = str,
) -> T:
    """Return `options` filled from the command line.

    options: its docstring is the help; what follows `Examples:` in it is printed at the end.
    arguments: without the program's name; None takes those of this process.
    prog: name of the command in its help, such as `tinyrm export`.
    more_help: returns what the help ends with.

    Exits with 2 after one message if the arguments are invalid, and with 0 after `--help`.
    """
    help_text = getattr(options, "__origin__", options).__doc__ or ""  # of what `configure` has marked, too
    description, _, examples = inspect.cleandoc(help_text).partition(EXAMPLES)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with colours():
            return tyro.cli(options, prog=prog, description=description.strip(), args=words, config=CONFIG)
    except SystemExit as left:
        if left.code == 0:
            parts = (f"examples:\n{examples}" if examples else "", more_help())
            print("".join(f"\n{part}\n" for part in parts if part), end="")
        else:
            suggest(options, words)
        raise


@contextmanager
def colours() -> Iterator[None]:
    """Print help in colours on a terminal, unless NO_COLOR or TERM=dumb is set; always with FORCE_COLOR."""
    settings = tyro._experimental_options
    before = settings["ansi_codes"], _fmtlib._FORCE_ANSI
    settings["ansi_codes"], _fmtlib._FORCE_ANSI = not os.environ.get("NO_COLOR"), bool(os.environ.get("FORCE_COLOR"))
    try:
        yield
    finally:
        settings["ansi_codes"], _fmtlib._FORCE_ANSI = before


def suggest(options: Any, words: Sequence[str]) -> None:
    """Print the nearest option for each that does not exist; the parser may have taken it for something else."""
    known = list(names_of(options))
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if not name.startswith("--") or name in ("--", "--help", *known):
            continue
        if near := get_close_matches(name, known, n=1):
            print(f"tinyrm: unknown option {name}; did you mean {near[0]}?", file=sys.stderr)


def names_of(options: Any) -> Iterator[str]:
    """Yield the options of a dataclass and of those in it."""
    if not is_dataclass(options):
        return
    for name, kind in get_type_hints(options).items():
        if is_dataclass(kind):
            yield from names_of(kind)
        else:
            yield f"--{name.replace('_', '-')}"
