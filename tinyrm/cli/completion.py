"""`tinyrm completion`: print the completion of a shell. `python -m tools.command_line` makes the scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from tinyrm.command_line import parse

SHELLS = ("bash", "zsh", "fish")
FOLDER = Path(__file__).with_name("completions")


@dataclass(frozen=True, slots=True)
class Completion:
    """Print a script that completes commands, options, choices and files.

    Examples:
      source <(tinyrm completion bash)                             # in ~/.bashrc
      source <(tinyrm completion zsh)                              # in ~/.zshrc, below compinit
      tinyrm completion fish > ~/.config/fish/completions/tinyrm.fish
    """

    shell: Annotated[Positional[Literal["bash", "zsh", "fish"]], arg(metavar="bash|zsh|fish")]
    """The shell."""


def main(words: Sequence[str]) -> int:
    shell = parse(Completion, words, prog="tinyrm completion").shell
    print((FOLDER / f"tinyrm.{shell}").read_text(encoding="utf-8"), end="")
    return 0
