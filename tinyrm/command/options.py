"""The words of the command line."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import tinyrm
from tinyrm.client.many import BATCH_ITEMS, CONCURRENCY
from tinyrm.command import ask
from tinyrm.command.score import score

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no other name

TEXT_HELP = "text; @FILE reads it from a file, - from standard input, @@ stands for an @ at the beginning"


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
        "a file of pairs, into a file of scores; run it again to go on where it stopped",
        "Reads JSON lines with prompt, and response_a and response_b, or chosen (which is A) and rejected. What a line "
        "says of domain, instruction and swap comes before the options. Each line is written as it was, with one more "
        'field, tinyrm: {"index": number of the line from 0, "reply": ...} or {"index": ..., "error": ...}.',
    )
    command.add_argument("pairs", type=Path, help="JSON lines, plain or packed (.gz, .xz)")
    command.add_argument("--out", type=Path, required=True, help="file to write, or to complete")
    _add_question(command)
    command.add_argument("--batch-items", type=_positive, default=BATCH_ITEMS, help="pairs in one call")
    command.add_argument("--concurrency", type=_positive, default=CONCURRENCY, help="calls at once")
    command.set_defaults(run=score, timeout_s=300.0)


def _command(commands: "Commands", name: str, summary: str, description: str | None = None) -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description or summary, formatter_class=formatter
    )
    command.add_argument("--url", default="http://127.0.0.1:8000", help="where the service is")
    command.add_argument("--api-key-file", type=Path, help="file with the key, if the service asks for one")
    command.add_argument("--timeout-s", type=_seconds, default=30.0, help="for one call, its repetitions included")
    return command


def _add_question(command: argparse.ArgumentParser) -> None:
    command.add_argument("--domain", help="one of the model's domains")
    command.add_argument("--instruction", help="in place of the domain's")
    command.add_argument("--swap", choices=("on", "off", "auto"), help="whether both orders are read")
    command.add_argument("--model", help="name or name@revision; refused if another one is served")


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
