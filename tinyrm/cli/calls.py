"""`tinyrm compare`, `rank` and `models`: call a service once and print the result."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tinyrm.api import ModelList, Reply
from tinyrm.cli.texts import read_file, read_texts
from tinyrm.client import Client, RankReply
from tinyrm.client.calls import CompareOptions
from tinyrm.command_line import Seconds, parse
from tinyrm.comparison import GroupStrategy, SwapMode

SHOWN_CHARACTERS = 60
TEXT_HELP = "Text. @FILE reads it from a file, - from standard input; @@ stands for an @ at the beginning."


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where the service is."""

    url: str = field(default_factory=lambda: os.environ.get("TINYRM_URL") or "http://127.0.0.1:8000")
    """Address of the service; the variable TINYRM_URL sets the default."""
    api_key_file: Path | None = None
    """File with the API key, if the service requires one; without it, the variable TINYRM_API_KEY is the key."""
    timeout_s: Seconds = 30.0
    """Limit of one call, with its repetitions."""

    def api_key(self) -> str | None:
        """Return the key. Raises InvalidInput if its file cannot be read."""
        if self.api_key_file is None:
            return (os.environ.get("TINYRM_API_KEY") or "").strip() or None
        return read_file(self.api_key_file).strip()

    def client(self) -> Client:
        return Client(self.url, self.api_key(), timeout_s=self.timeout_s)


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """How responses are compared."""

    domain: str | None = None
    """One of the model's domains; each has its own instruction."""
    instruction: str | None = None
    """Replaces the domain's instruction."""
    swap: SwapMode | None = None
    """on: score both orders. off: one order, half the cost. auto: the second only if the first is not decisive."""
    model: str | None = None
    """Name or name@revision; the service refuses a model that it does not serve."""

    def options(self) -> CompareOptions:
        return CompareOptions(domain=self.domain, instruction=self.instruction, swap=self.swap, model=self.model)


@dataclass(frozen=True, kw_only=True)
class Compare(ComparisonOptions, Service):
    """Compare two responses with a service: which is better, and with what probability?"""

    prompt: Annotated[Positional[str], arg(metavar="PROMPT", help=TEXT_HELP)]
    response_a: Annotated[Positional[str], arg(metavar="RESPONSE_A", help=TEXT_HELP)]
    response_b: Annotated[Positional[str], arg(metavar="RESPONSE_B", help=TEXT_HELP)]
    json: bool = False
    """Print the reply as JSON."""


@dataclass(frozen=True, kw_only=True)
class Rank(ComparisonOptions, Service):
    """Rank several responses with a service, best first.

    A line has the strength, its standard error, and the response with its place on the command line, from 1. In JSON,
    order holds places from 0, as in the API.
    """

    prompt: Annotated[Positional[str], arg(metavar="PROMPT", help=TEXT_HELP)]
    responses: Annotated[Positional[tuple[str, ...]], arg(metavar="RESPONSE ...", help="2 to 128 texts, as PROMPT.")]
    strategy: GroupStrategy | None = None
    """Which pairs are compared; all by default. cascade: the best by the scores of a second model."""
    top: int | None = None
    """How many of the best `--strategy cascade` compares; 4 by default."""
    reference: str | None = None
    """The response that `--strategy reference` compares with."""
    json: bool = False
    """Print the reply as JSON."""


@dataclass(frozen=True, kw_only=True)
class Models(Service):
    """List the models of a service."""

    json: bool = False
    """Print the reply as JSON."""


def compare(words: Sequence[str]) -> int:
    options = parse(Compare, words, prog="tinyrm compare")
    texts = read_texts([options.prompt, options.response_a, options.response_b])
    with options.client() as client:
        reply = client.compare(*texts, **options.options())
    if options.json:
        print_json(reply)
        return 0
    better = {"a": "A is better", "b": "B is better", "tie": "neither is better"}[reply.preferred]
    sure = {"close": "too close to call", "leaning": "leaning", "clear": "clear"}[reply.confidence]
    print(f"{better} ({sure}): P(A) {reply.probability_a:.3f}, P(B) {reply.probability_b:.3f}, {reply.model}")
    lost = reply.truncated
    if lost.prompt + lost.response_a + lost.response_b:
        tokens = f"prompt {lost.prompt}, A {lost.response_a}, B {lost.response_b}"
        print(f"tinyrm: too long for the model; truncated tokens: {tokens}", file=sys.stderr)
    return 0


def rank(words: Sequence[str]) -> int:
    options = parse(Rank, words, prog="tinyrm rank")
    prompt, *responses = read_texts([options.prompt, *options.responses])
    reference = None if options.reference is None else read_texts([options.reference])[0]
    with options.client() as client:
        reply = client.rank(
            prompt,
            responses,
            strategy=options.strategy,
            top=options.top,
            reference=reference,
            **options.options(),
        )
    if options.json:
        print_json(reply)
    else:
        print(ranking(reply, responses))
    return 0


def models(words: Sequence[str]) -> int:
    options = parse(Models, words, prog="tinyrm models")
    with options.client() as client:
        cards = client.models()
    if options.json:
        print_json(ModelList(models=cards))
        return 0
    for card in cards:
        engine, domains = f"{card.engine} {card.precision}", ", ".join(card.domains)
        print(f"{card.name}@{card.revision}  {engine}  reads: {card.reads}  domains: {domains}")
    return 0


def print_json(reply: Reply) -> None:
    """Print a reply in ASCII, so that no encoding of standard output changes it."""
    print(json.dumps(reply.model_dump()))


def ranking(reply: RankReply, responses: Sequence[str]) -> str:
    """Return a line for each response, best first: strength, standard error, its number from 1, its first words."""
    lines = []
    for index in reply.order:
        text = " ".join(responses[index].split())
        shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
        lines.append(f"{reply.strengths[index]:+.3f} ± {reply.standard_errors[index]:.3f}  {index + 1}: {shown}")
    return "\n".join(lines)
