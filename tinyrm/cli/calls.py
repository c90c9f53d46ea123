"""`tinyrm compare`, `rank` and `models`: call a service once and print the result."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tinyrm.api import ModelList
from tinyrm.client import Client, RankReply
from tinyrm.client.calls import CompareOptions
from tinyrm.command_line import Seconds, parse
from tinyrm.comparison import Strategy, SwapMode
from tinyrm.errors import InvalidInput

SHOWN_CHARACTERS = 60
TEXT_HELP = "Text. @FILE reads it from a file, - from standard input; @@ stands for an @ at the beginning."


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where the service is."""

    url: str = "http://127.0.0.1:8000"
    """Address of the service."""
    api_key_file: Path | None = None
    """File with the API key, if the service requires one."""
    timeout_s: Seconds = 30.0
    """Limit of one call, with its repetitions."""

    def api_key(self) -> str | None:
        """Return the key. Raises InvalidInput if its file cannot be read."""
        return None if self.api_key_file is None else _read(self.api_key_file).strip()

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
    """Rank several responses with a service, best first."""

    prompt: Annotated[Positional[str], arg(metavar="PROMPT", help=TEXT_HELP)]
    responses: Annotated[Positional[tuple[str, ...]], arg(metavar="RESPONSE ...", help="2 to 128 texts, as PROMPT.")]
    strategy: Strategy | None = None
    """Which pairs are compared; all by default."""
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
        print(reply.model_dump_json())
        return 0
    better = {"a": "A is better", "b": "B is better", "tie": "neither is better"}[reply.preferred]
    print(f"{better}: P(A) {reply.probability_a:.3f}, P(B) {reply.probability_b:.3f}, {reply.model}")
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
        reply = client.rank(prompt, responses, strategy=options.strategy, reference=reference, **options.options())
    print(reply.model_dump_json() if options.json else ranking(reply, responses))
    return 0


def models(words: Sequence[str]) -> int:
    options = parse(Models, words, prog="tinyrm models")
    with options.client() as client:
        cards = client.models()
    if options.json:
        print(ModelList(models=cards).model_dump_json())
        return 0
    for card in cards:
        print(f"{card.name}@{card.revision}  {card.engine} {card.precision}  domains: {', '.join(card.domains)}")
    return 0


def ranking(reply: RankReply, responses: Sequence[str]) -> str:
    """Return a line for each response, best first: strength, standard error, its number from 1, its first words."""
    lines = []
    for index in reply.order:
        text = " ".join(responses[index].split())
        shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
        lines.append(f"{reply.strengths[index]:+.3f} ± {reply.standard_errors[index]:.3f}  {index + 1}: {shown}")
    return "\n".join(lines)


def read_texts(words: Sequence[str]) -> list[str]:
    """Return the texts of arguments, from a file or standard input where they name one. Raises InvalidInput."""
    if words.count("-") > 1:
        raise InvalidInput("only one of the texts can be standard input; use @FILE for the others")
    texts = []
    for word in words:
        if word == "-":
            texts.append(sys.stdin.read())
        elif word.startswith("@@"):
            texts.append(word[1:])
        else:
            texts.append(_read(Path(word[1:])) if word.startswith("@") else word)
    return texts


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}") from error
