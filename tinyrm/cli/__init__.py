"""The command `tinyrm`: one verb for each thing that can be done, from training a model to calling the service.

Exit codes: 0 done; 1 the work failed, in part or as a whole; 2 the command cannot be run as it is written; 3 the
service could not start; 130 interrupted.
"""

import importlib
import sys
from collections.abc import Sequence

import tinyrm
from tinyrm.errors import CallFailed, InvalidInput, TinyRMError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

# What a verb does, and the function that does it, imported when the verb is run: `tinyrm --help` is fast.
VERBS = {
    "serve": ("serve a bundle over HTTP; settings are environment variables, TINYRM_*", "service.__main__:main"),
    "train": ("run a training recipe", "training.__main__:main"),
    "export": ("turn a trained model into a bundle", "export.__main__:main"),
    "evaluate": ("measure how good a bundle, a checkpoint or a service is", "evaluation.__main__:main"),
    "compare": ("ask a service which of two responses is better", "tinyrm.cli.ask:compare"),
    "rank": ("ask a service for the order of several responses, best first", "tinyrm.cli.ask:rank"),
    "score": ("score files of pairs, with a service or with a bundle", "tinyrm.cli.score:main"),
    "models": ("list the models of a service", "tinyrm.cli.ask:models"),
    "bench": ("measure the latency of a bundle on this machine", "tinyrm.cli.bench:main"),
    "keys": ("make, list and revoke API keys of a service", "service.keys:main"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code. Exits with 2 if there is no such verb, or its options do not fit."""
    verb, *rest = (sys.argv[1:] if words is None else words) or ["missing"]
    if verb in ("-h", "--help", "--version"):
        print(f"tinyrm {tinyrm.__version__}" if verb == "--version" else usage())
        return DONE
    if verb not in VERBS:
        print(f"{usage()}\n\ntinyrm: {verb!r} is not one of the commands", file=sys.stderr)
        raise SystemExit(USAGE)
    try:
        return _run(verb, rest)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; Python would complain about it at exit
        return FAILED
    except (TinyRMError, OSError) as error:
        request = f" [request {error.request_id}]" if isinstance(error, CallFailed) and error.status else ""
        print(f"tinyrm: {' '.join(str(error).split())}{request}", file=sys.stderr)
        return USAGE if isinstance(error, InvalidInput) else FAILED


def usage() -> str:
    """Return the help of the command as a whole: every verb with one line."""
    verbs = "\n".join(f"  {verb:<10}{summary}" for verb, (summary, _) in VERBS.items())
    return (
        "usage: tinyrm COMMAND ...\n\n"
        "Tiny reward models that say which of two responses is better: train, export, serve, evaluate, ask.\n\n"
        f"{verbs}\n\n"
        "`tinyrm COMMAND --help` lists the options of a command; `tinyrm --version` prints the version."
    )


def _run(verb: str, words: Sequence[str]) -> int:
    module, _, function = VERBS[verb][1].partition(":")
    if module.startswith("tinyrm."):
        code: int = getattr(importlib.import_module(module), function)(words)
    else:
        code = importlib.import_module("tinyrm.cli.applications").run(module, verb, words)
    return code
