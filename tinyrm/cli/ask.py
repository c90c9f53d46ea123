"""One question, one answer on standard output: compare, rank, models."""

import sys
from argparse import Namespace
from pathlib import Path

from tinyrm.api import ModelList
from tinyrm.client import Client, RankReply
from tinyrm.client.calls import CompareOptions
from tinyrm.errors import InvalidInput

SHOWN_CHARACTERS = 60


def compare(options: Namespace) -> int:
    texts = texts_of([options.prompt, options.response_a, options.response_b])
    with client_of(options) as client:
        reply = client.compare(*texts, **question_of(options))
    if options.json:
        print(reply.model_dump_json())
        return 0
    better = {"a": "A is better", "b": "B is better", "tie": "neither is better"}[reply.preferred]
    print(f"{better}: P(A) {reply.probability_a:.3f}, P(B) {reply.probability_b:.3f}, {reply.model}")
    cut = reply.truncated
    if cut.prompt + cut.response_a + cut.response_b:
        lost = f"prompt {cut.prompt}, A {cut.response_a}, B {cut.response_b}"
        print(f"tinyrm: too long for the model; tokens not read: {lost}", file=sys.stderr)
    return 0


def rank(options: Namespace) -> int:
    prompt, *responses = texts_of([options.prompt, *options.responses])
    reference = None if options.reference is None else texts_of([options.reference])[0]
    with client_of(options) as client:
        reply = client.rank(prompt, responses, strategy=options.strategy, reference=reference, **question_of(options))
    print(reply.model_dump_json() if options.json else ranking(reply, responses))
    return 0


def ranking(reply: RankReply, responses: list[str]) -> str:
    """A line for each response, best first: strength, its standard error, its number as given, how it begins."""

    def line(index: int) -> str:
        strength = f"{reply.strengths[index]:+.3f} ± {reply.standard_errors[index]:.3f}"
        return f"{strength}  {index + 1}: {_beginning(responses[index])}"

    return "\n".join(map(line, reply.order))


def models(options: Namespace) -> int:
    with client_of(options) as client:
        cards = client.models()
    if options.json:
        print(ModelList(models=cards).model_dump_json())
        return 0
    for card in cards:
        print(f"{card.name}@{card.revision}  {card.engine} {card.precision}  domains: {', '.join(card.domains)}")
    return 0


def client_of(options: Namespace) -> Client:
    return Client(options.url, key_of(options.api_key_file), timeout_s=options.timeout_s)


def question_of(options: Namespace) -> CompareOptions:
    return CompareOptions(
        domain=options.domain, instruction=options.instruction, swap=options.swap, model=options.model
    )


def key_of(file: Path | None) -> str | None:
    return None if file is None else _read(file).strip()


def texts_of(words: list[str]) -> list[str]:
    """Raises InvalidInput if a file cannot be read, or more than one text is to come from standard input."""
    if words.count("-") > 1:
        raise InvalidInput("standard input can be one of the texts only; use @FILE for the others")
    return [_text_of(word) for word in words]


def _text_of(word: str) -> str:
    if word == "-":
        return sys.stdin.read()
    if word.startswith("@@"):
        return word[1:]
    return _read(Path(word[1:])) if word.startswith("@") else word


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}") from error


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."
