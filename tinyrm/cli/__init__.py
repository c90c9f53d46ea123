"""The command `tinyrm`: one verb for each task, from training a model to calling the service.

Exit codes: 0 done; 1 the work failed, in part or as a whole; 2 invalid arguments or input; 3 the service could not
start; 130 interrupted.
"""

import importlib
import sys
from collections.abc import Sequence

import tinyrm
from tinyrm.errors import CallFailed, InvalidInput, TinyRMError
from tinyrm.output import standard_output

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

# Verb -> its help, and its function, which is imported only when the verb runs: `tinyrm --help` is fast.
VERBS = {
    "serve": ("serve a bundle over HTTP; settings are environment variables, TINYRM_*", "service.__main__:main"),
    "train": ("run a training recipe", "training.__main__:main"),
    "export": ("turn a trained model into a bundle", "export.__main__:main"),
    "evaluate": ("measure how good a bundle, a checkpoint or a service is", "evaluation.__main__:main"),
    "compare": ("compare two responses with a service", "tinyrm.cli.calls:compare"),
    "rank": ("rank several responses with a service, best first", "tinyrm.cli.calls:rank"),
    "score": ("score files of pairs, with a service or with a bundle", "tinyrm.cli.score:main"),
    "models": ("list the models of a service", "tinyrm.cli.calls:models"),
    "bench": ("measure the latency of a bundle on this machine", "tinyrm.cli.bench:main"),
    "keys": ("make, list and revoke API keys of a service", "service.keys:main"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code. Exits with 2 if the verb or its options are invalid."""
    try:
        with standard_output():
            return _run(*((sys.argv[1:] if words is None else words) or ["missing"]))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (TinyRMError, OSError) as error:
        request = f" [request {error.request_id}]" if isinstance(error, CallFailed) and error.status else ""
        print(f"tinyrm: {' '.join(str(error).split())}{request}", file=sys.stderr)
        return USAGE if isinstance(error, InvalidInput) else FAILED


def _run(verb: str, *words: str) -> int:
    if verb in ("-h", "--help", "--version"):
        print(f"tinyrm {tinyrm.__version__}" if verb == "--version" else usage())
        return DONE
    if verb not in VERBS:
        print(f"{usage()}\n\ntinyrm: {verb!r} is not one of the commands", file=sys.stderr)
        raise SystemExit(USAGE)
    module, _, function = VERBS[verb][1].partition(":")
    if module.startswith("tinyrm."):
        code: int = getattr(importlib.import_module(module), function)(words)
    else:
        code = importlib.import_module("tinyrm.cli.applications").run(module, verb, words)
    return code


def usage() -> str:
    """Return the help of the whole command: one line for each verb."""
    verbs = "\n".join(f"  {verb:<10}{summary}" for verb, (summary, _) in VERBS.items())
    return (
        "usage: tinyrm COMMAND ...\n\n"
        "Tiny reward models, which score which of two responses is better: train, export, serve, evaluate, call.\n\n"
        f"{verbs}\n\n"
        "`tinyrm COMMAND --help` lists the options of a command; `tinyrm --version` prints the version."
    )
