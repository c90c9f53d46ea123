"""Prompts and completions as trainers hand them over, as the texts and chat messages that the service takes."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from tinyrm.client import CompareItem, Message

# One turn as datasets hold it: `content` is text, a list of parts, or nothing beside a tool call.
Turn = Mapping[str, Any]
Prompt = str | Sequence[Turn]
Completion = str | Sequence[Turn]

# Policies do answer with nothing. The service takes no empty text, and a blank is as near as text comes to it.
NOTHING_SAID = " "


def prompt_of(prompt: Prompt) -> str | list[Message]:
    """The prompt as the service takes it: text as it is, turns with their role and their text alone."""
    return (prompt if isinstance(prompt, str) else _spoken(prompt)) or NOTHING_SAID


def response_of(completion: Completion) -> str:
    """The completion as one text; of several turns (a tool call, its result, the answer) all that is text, in order."""
    if isinstance(completion, str):
        return completion or NOTHING_SAID
    return "\n\n".join(turn["content"] for turn in _spoken(completion)) or NOTHING_SAID


def split_conversation(turns: Sequence[Turn]) -> tuple[list[Message], str]:
    """A conversation as its prompt and its last turn, the response.

    Raises ValueError if there is no turn before the last.
    """
    if len(turns) < 2:
        raise ValueError(f"a conversation is a prompt and a response, at least 2 messages; got {len(turns)}")
    return _spoken(turns[:-1]), response_of(turns[-1:])


def comparison(prompt: Prompt, a: Completion, b: Completion, options: Mapping[str, Any]) -> CompareItem:
    """options: of `Client.compare`, passed on as they are: what is wrong with them the service says."""
    texts = {"prompt": prompt_of(prompt), "response_a": response_of(a), "response_b": response_of(b)}
    return cast("CompareItem", texts | dict(options))


def _spoken(turns: Sequence[Turn]) -> list[Message]:
    """Role and text of each turn that has text."""
    return [Message(role=turn["role"], content=_content(turn)) for turn in turns if _content(turn)]


def _content(turn: Turn) -> str:
    content = turn.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)
