"""A command line made from a dataclass: each field is an option, the docstring beneath it is its help."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro

T = TypeVar("T")

# `--flag` alone, without a `--no-flag` beside it; lists as `--pairs A B`; no type names where the help says more.
CONFIG = (tyro.conf.FlagCreatePairsOff,)


def parse(options: type[T], arguments: Sequence[str] | None = None, *, prog: str) -> T:
    """Return `options` filled from the command line.

    arguments: without the program's name; None takes those of this process.
    prog: how the help names the command, such as `tinyrm export`.

    Exits with 2 after one message if the arguments do not fit, and with 0 after `--help`.
    """
    return tyro.cli(options, prog=prog, args=arguments, config=CONFIG)


def parse_subcommand(
    commands: Mapping[str, type[Any]], arguments: Sequence[str] | None = None, *, prog: str, description: str
) -> Any:
    """Return an instance of the dataclass whose name in `commands` is the first argument. Exits as `parse` does."""
    return tyro.extras.subcommand_cli_from_dict(
        dict(commands), prog=prog, description=description, args=arguments, config=CONFIG
    )
