"""The command `tinyrm`: one verb for each task, from training a model to calling the service.

Exit codes are those of EXIT_CODES.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import tinyrm
from tinyrm.cli.extras import missing
from tinyrm.errors import CallFailed, InvalidInput, TinyRMError
from tinyrm.output import standard_output

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = {
    DONE: "done",
    FAILED: "the work failed, as a whole or for some rows, or the output is no longer read",
    USAGE: "invalid arguments, input or settings",
    3: "the service could not start",
    INTERRUPTED: "interrupted by Ctrl-C",
}
VARIABLES = {
    "TINYRM_URL": "address of the service, for compare, rank, score, models and evaluate",
    "TINYRM_API_KEY": "its key, if it needs one",
    "TINYRM_CACHE": "folder for bundles of the hub or of a URL; default: ~/.cache/tinyrm",
    "TINYRM_...": "settings of `tinyrm serve`, which `tinyrm serve --settings` lists",
    "NO_COLOR": "no colours; FORCE_COLOR: colours also in a pipe",
}
EXAMPLES = (
    "tinyrm serve",
    'tinyrm compare "What is 2 + 2?" "4" "5"',
    "cat pairs.jsonl | tinyrm score - --out - | jq .tinyrm.reply.preferred",
    "tinyrm train my.jsonl --out models/mine",
    "source <(tinyrm completion bash)",
)

# Verb -> its help, and its function, which is imported only when the verb runs: `tinyrm --help` is fast.
VERBS = {
    "serve": ("serve a bundle over HTTP; settings are environment variables, TINYRM_*", "service.__main__:main"),
    "train": ("train on your pairs, from a file to a bundle, or run a recipe", "training.__main__:main"),
    "export": ("turn a trained model into a bundle", "export.__main__:main"),
    "evaluate": ("measure how good a bundle, a checkpoint or a service is", "evaluation.__main__:main"),
    "compare": ("compare two responses with a service", "tinyrm.cli.calls:compare"),
    "rank": ("rank several responses with a service, best first", "tinyrm.cli.calls:rank"),
    "score": ("score files of pairs, with a service or with a bundle", "tinyrm.cli.score:main"),
    "models": ("list the models of a service", "tinyrm.cli.calls:models"),
    "bench": ("measure the latency of a bundle on this machine", "tinyrm.cli.bench:main"),
    "keys": ("make, list and revoke API keys of a service", "service.keys:main"),
    "completion": ("print the completion of a shell: bash, zsh or fish", "tinyrm.cli.completion:main"),
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
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"{usage()}\n\ntinyrm: {verb!r} is not one of the commands{hint}", file=sys.stderr)
        raise SystemExit(USAGE)
    module, _, function = VERBS[verb][1].partition(":")
    if module.startswith("tinyrm."):
        try:
            command = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise missing(f"tinyrm {verb}", error, "local") from error
        code: int = getattr(command, function)(words)
    else:
        code = importlib.import_module("tinyrm.cli.applications").run(module, verb, words)
    return code


def usage() -> str:
    """Return the help of the whole command: one line for each verb."""

    def table(rows: Mapping[Any, str]) -> str:
        return "\n".join(f"  {name!s:<16}{text}" for name, text in rows.items())

    return (
        "usage: tinyrm COMMAND ...\n\n"
        "Tiny reward models, which return the better response: train, export, serve, evaluate, call.\n\n"
        f"commands:\n{table({verb: summary for verb, (summary, _) in VERBS.items()})}\n\n"
        f"examples:\n{chr(10).join(f'  {example}' for example in EXAMPLES)}\n\n"
        f"exit codes:\n{table(EXIT_CODES)}\n\n"
        f"environment:\n{table(VARIABLES)}\n\n"
        "`tinyrm COMMAND --help` lists the options of a command; `tinyrm --version` prints the version."
    )
