"""What a command says of its work while it works, on standard error."""

import importlib.util
import sys


def is_shown() -> bool:
    """A bar, where a person looks on; without tqdm a command does its work all the same."""
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None


def say(text: str) -> None:
    print(f"tinyrm: {text}", file=sys.stderr, flush=True)
