"""The words of the command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import tinyrm
from tinyrm.cli import ask
from tinyrm.cli.score import score
from tinyrm.client.batches import BATCH_ITEMS, CONCURRENCY

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no other name

TEXT_HELP = "text; @FILE reads it from a file, - from standard input, @@ stands for an @ at the beginning"


def main(words: Sequence[str]) -> int:
    options = parser().parse_args(words)
    code: int = options.run(options)
    return code


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tinyrm", description="Which of two responses is better? Asks a TinyRM service.")
    top.add_argument("--version", action="version", version=f"tinyrm {tinyrm.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_compare(commands)
    _add_rank(commands)
    _add_score(commands)
    models = _command(commands, "models", "what is served")
    models.add_argument("--json", action="store_true", help="the reply as JSON")
    models.set_defaults(run=ask.models)
    return top


def _add_compare(commands: "Commands") -> None:
    command = _command(commands, "compare", "which of two responses is better")
    for name in ("prompt", "response_a", "response_b"):
        command.add_argument(name, help=TEXT_HELP)
    _add_question(command)
    command.add_argument("--json", action="store_true", help="the reply as JSON")
    command.set_defaults(run=ask.compare)


def _add_rank(commands: "Commands") -> None:
    command = _command(commands, "rank", "the order of several responses, best first")
    command.add_argument("prompt", help=TEXT_HELP)
    command.add_argument("responses", nargs="+", metavar="response", help="the same; 2 to 128 of them")
    _add_question(command)
    strategies = ("round_robin", "swiss", "knockout", "reference")
    command.add_argument("--strategy", choices=strategies, help="which pairs are compared (default: all)")
    command.add_argument("--reference", help="what --strategy reference compares with")
    command.add_argument("--json", action="store_true", help="the reply as JSON")
    command.set_defaults(run=ask.rank)


def _add_score(commands: "Commands") -> None:
    command = _command(
        commands,
        "score",
        "files of pairs, into scores; run it again to go on where it stopped",
        "Reads JSON lines with prompt, and response_a and response_b, or chosen (which is A) and rejected. What a line "
        "says of domain, instruction and swap comes before the options. Each line is written as it was, with one more "
        'field, tinyrm: {"index": number of the line from 0, "reply": ...} or {"index": ..., "error": ...}. '
        "With --bundle no service is asked: any number of files, JSON lines or Parquet, are scored here, or on the "
        "machines of a Ray cluster, into a folder of Parquet files; both orders of every pair are read.",
    )
    command.add_argument(
        "pairs", nargs="+", help="JSON lines, plain or packed (.gz, .xz); with --bundle also Parquet, folders, globs, "
        "and addresses such as s3:// and hf://datasets/",
    )  # fmt: skip
    command.add_argument(
        "--out", type=Path, required=True, help="file to write, or to complete; with --bundle a folder"
    )
    _add_question(command)
    command.add_argument(
        "--batch-items", type=_positive, default=BATCH_ITEMS, help="pairs in one call (default: %(default)s)"
    )
    command.add_argument(
        "--concurrency", type=_positive, default=CONCURRENCY, help="calls at once (default: %(default)s)"
    )
    _add_bundle(command)
    command.set_defaults(run=score, timeout_s=300.0)


def _add_bundle(command: argparse.ArgumentParser) -> None:
    bundle = command.add_argument_group("without a service")
    bundle.add_argument("--bundle", type=Path, help="folder of the model; on a cluster the same one on every machine")
    bundle.add_argument("--engine", default="auto", help="what runs it (default: the fastest one that is installed)")
    bundle.add_argument("--precision", default="fp32", help="which of its precisions (default: %(default)s)")
    bundle.add_argument("--threads", type=_positive, default=0, help="of the engine (default: all processors)")
    bundle.add_argument(
        "--rows-per-part", type=_positive, default=2048,
        help="rows of one Parquet file; what a kill can cost (default: %(default)s)",
    )  # fmt: skip
    bundle.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS",
        help="spread the parts over a cluster: auto, or host:6379; without an address over this machine. "
        "Bundle, pairs and --out have to be the same folders on every machine",
    )  # fmt: skip
    bundle.add_argument(
        "--cpus-per-engine", type=_positive, default=1, help="processors, and threads, of one (default: %(default)s)"
    )
    bundle.add_argument("--gpus-per-engine", type=_share, default=0.0, help="GPUs of one (default: %(default)g)")
    bundle.add_argument("--engines", type=_positive, help="how many (default: as many as there is room for)")


def _command(commands: "Commands", name: str, summary: str, description: str | None = None) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description or summary)
    command.register("action", None, _Noted)
    command.add_argument("--url", default="http://127.0.0.1:8000", help="where the service is (default: %(default)s)")
    command.add_argument("--api-key-file", type=Path, help="file with the key, if the service asks for one")
    command.add_argument(
        "--timeout-s", type=_seconds, default=30.0, help="for one call, its repetitions included (default: %(default)g)"
    )
    return command


def _add_question(command: argparse.ArgumentParser) -> None:
    command.add_argument("--domain", help="one of the model's domains")
    command.add_argument("--instruction", help="in place of the domain's")
    command.add_argument("--swap", choices=("on", "off", "auto"), help="whether both orders are read")
    command.add_argument("--model", help="name or name@revision; refused if another one is served")


class _Noted(argparse.Action):
    """Stores a value, and that it was given: of options that do not go together, defaults are not among them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        if option_string:
            namespace.said = [*getattr(namespace, "said", ()), self.option_strings[0]]


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("has to be at least 0")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("has to be at least 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("has to be above 0")
    return number
