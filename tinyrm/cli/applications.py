"""Run the applications of the repository's top-level folders as verbs of the command `tinyrm`."""

import importlib
import os
import sys
from collections.abc import Sequence

from tinyrm import starter
from tinyrm.cli.extras import missing

# The extra with the packages that an application imports.
EXTRAS = {"service": "serve", "training": "train", "export": "export", "evaluation": "local,evaluation"}


def run(module: str, verb: str, words: Sequence[str]) -> int:
    """Run `module`, such as `service.__main__`, as `python -m` would with `words`, and return its exit code.

    Raises InvalidInput, naming the extra to install, if a package is missing.
    """
    root = str(starter.root())
    if root not in sys.path:
        sys.path.insert(0, root)
    # The service starts processes of its own, which import the same folders.
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, *paths)))
    application = module.partition(".")[0]
    try:
        code: int = importlib.import_module(module).main(words, prog=f"tinyrm {verb}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in (application, "tinyrm"):
            raise
        raise missing(f"tinyrm {verb}", error, EXTRAS[application]) from error
    return code
