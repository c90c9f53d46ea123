"""`tinyrm compare`, `rank` and `models`: call a service once and print the result."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args
from urllib.parse import urlsplit

from tyro.conf import Positional, arg

from tinyrm.api import ModelList, Reply
from tinyrm.cli.texts import read_file, read_texts
from tinyrm.client import Client, RankReply
from tinyrm.client.calls import CompareOptions
from tinyrm.command_line import Flag, Seconds, option, parse
from tinyrm.comparison import EmptyMode, GroupStrategy, SwapMode
from tinyrm.errors import ServiceUnreachable
from tinyrm.reasoning import Reasoning

SHOWN_CHARACTERS = 60
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
TEXT_HELP = "Text. @FILE reads it from a file, - from standard input; @@ stands for an @ at the beginning."


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where the service is."""

    url: Annotated[str, option("URL")] = field(
        default_factory=lambda: os.environ.get("TINYRM_URL") or "http://127.0.0.1:8000"
    )
    """Address of the service; default: the variable TINYRM_URL, or http://127.0.0.1:8000."""
    api_key_file: Annotated[Path | None, option("FILE")] = None
    """File with the API key, if the service requires one; without it, the variable TINYRM_API_KEY is the key."""
    timeout_s: Seconds = 30.0
    """Limit of one call, with its repetitions."""

    def api_key(self) -> str | None:
        """Return the key. Raises InvalidInput if its file cannot be read."""
        if self.api_key_file is None:
            return (os.environ.get("TINYRM_API_KEY") or "").strip() or None
        return read_file(self.api_key_file).strip()

    def client(self) -> Client:
        """Return a client. Raises ServiceUnreachable at once if nothing listens at an address of this machine."""
        client = Client(self.url, self.api_key(), timeout_s=self.timeout_s)
        refuse_closed_port(self.url)
        return client


def refuse_closed_port(url: str) -> None:
    """Raise ServiceUnreachable if this machine refuses the connection; a person who waits would learn no more.

    A refusal by another machine may be that of a service that restarts, and is repeated by the client.
    """
    with suppress(ValueError):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if parts.hostname not in THIS_MACHINE:
            return
        try:
            socket.create_connection((parts.hostname, port), timeout=1.0).close()
        except ConnectionRefusedError as error:
            raise ServiceUnreachable(
                f"nothing listens at {parts.scheme}://{parts.netloc.rpartition('@')[2]}; start the service with "
                "`tinyrm serve`, or name another with --url or TINYRM_URL"
            ) from error
        except OSError:
            return  # the client finds the reason


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """How responses are compared."""

    domain: Annotated[str | None, option("NAME")] = None
    """One of the model's domains; each has its own instruction."""
    instruction: Annotated[str | None, option("TEXT")] = None
    """Replaces the domain's instruction."""
    swap: Annotated[SwapMode | None, option("on|off|auto")] = None
    """on: score both orders. off: one order, half the cost. auto: the second only if the first is not decisive."""
    model: Annotated[str | None, option("NAME")] = None
    """Name or name@revision; the service refuses a model that it does not serve."""
    reasoning: Annotated[Reasoning | None, option("keep|drop")] = None
    """drop: reasoning before a response, between tags such as <think>, is not judged. keep: it is."""

    def options(self) -> CompareOptions:
        return CompareOptions(
            domain=self.domain,
            instruction=self.instruction,
            swap=self.swap,
            model=self.model,
            reasoning=self.reasoning,
        )


@dataclass(frozen=True, kw_only=True)
class Compare(ComparisonOptions, Service):
    """Compare two responses with a service: which is better, and with what probability?

    Examples:
      tinyrm compare "What is 2 + 2?" "4" "5"
      tinyrm compare @prompt.txt @a.txt @b.txt --domain reasoning
      echo "Because air scatters blue light." | tinyrm compare "Why is the sky blue?" - "No idea." --json
    """

    prompt: Annotated[Positional[str], arg(metavar="PROMPT", help=TEXT_HELP)]
    response_a: Annotated[Positional[str], arg(metavar="RESPONSE_A", help=TEXT_HELP)]
    response_b: Annotated[Positional[str], arg(metavar="RESPONSE_B", help=TEXT_HELP)]
    json: Flag = False
    """Print the reply as JSON."""


@dataclass(frozen=True, kw_only=True)
class Rank(ComparisonOptions, Service):
    """Rank several responses with a service, best first.

    A line has the strength, its standard error, and the response with its index on the command line, from 0, as in
    `order` of the JSON.

    Examples:
      tinyrm rank "Why is the sky blue?" "Because it is." "Air scatters blue light more." "No idea."
      tinyrm rank @prompt.txt @a.txt @b.txt @c.txt --strategy swiss --json | jq .order[0]
    """

    prompt: Annotated[Positional[str], arg(metavar="PROMPT", help=TEXT_HELP)]
    responses: Annotated[Positional[tuple[str, ...]], option("RESPONSE ...")]
    """2 to 1000 texts, as PROMPT."""
    strategy: Annotated[GroupStrategy | None, option("|".join(get_args(GroupStrategy)))] = None
    """Which pairs are compared; all by default, or swiss if there are too many. cascade: the best by a second model."""
    top: Annotated[int | None, option("N")] = None
    """How many of the best `--strategy cascade` compares; 4 by default."""
    reference: Annotated[str | None, option("TEXT")] = None
    """The response that `--strategy reference` compares with."""
    empty: Annotated[EmptyMode | None, option("|".join(get_args(EmptyMode)))] = None
    """Whether empty responses are last, the default, or judged as a blank."""
    json: Flag = False
    """Print the reply as JSON."""


@dataclass(frozen=True, kw_only=True)
class Models(Service):
    """List the models of a service.

    Examples:
      tinyrm models
      tinyrm models --url http://gpu-1:8000 --json | jq -r .models[].name
    """

    json: Flag = False
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
            empty=options.empty,
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
    """Return a line for each response, best first: strength, standard error, its index from 0, its first words."""
    lines = []
    for index in reply.order:
        text = " ".join(responses[index].split())
        shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
        lines.append(f"{reply.strengths[index]:+.3f} ± {reply.standard_errors[index]:.3f}  [{index}] {shown}")
    return "\n".join(lines)
