"""What commands share: the error if a package is missing, and the log of what is fetched."""

import logging
from collections.abc import Sequence

from tinyrm.errors import InvalidInput


def show_fetching(names: Sequence[str]) -> None:
    """Show what is being fetched, on standard error. names: loggers."""
    logging.basicConfig(format="tinyrm: %(message)s")
    for name in names:
        logging.getLogger(name).setLevel(logging.INFO)


def missing(needed_by: str, error: ModuleNotFoundError, extra: str) -> InvalidInput:
    """Return an error that names the extra to install."""
    return InvalidInput(f"{needed_by} needs {(error.name or '').partition('.')[0]}: pip install 'tinyrm[{extra}]'")
