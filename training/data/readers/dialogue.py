"""Dialogues as the published sets write them -> messages, and one prompt text as the product renders it."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from tinyrm.chat import Message
from tinyrm.errors import InvalidInput
from tinyrm.template import FIGURE2

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
}

# How HH-RLHF marks the turns inside one string.
TURN = re.compile(r"\n\n(Human|Assistant):")


def render(turns: Sequence[Message]) -> str:
    """Render as the service renders the messages of a request. By default every template names the speakers alike."""
    return FIGURE2.render_messages(list(turns))


def message(role: str, content: str) -> Message | None:
    """Return one turn; None if it is blank. Raises InvalidInput for a role that no set is known to have."""
    known = ROLES.get(role.lower())
    if known is None:
        raise InvalidInput(f"a message has the role {role!r}; known roles are {', '.join(ROLES)}")
    return Message(role=known, content=content) if content.strip() else None


def from_messages(messages: Sequence[dict[str, Any]]) -> tuple[list[Message], str] | None:
    """Return what comes before the last response, and that response. None if the dialogue does not end in one."""
    if not messages or ROLES.get(messages[-1]["role"].lower()) != "assistant":
        return None
    before = [message(m["role"], m["content"] or "") for m in messages[:-1]]
    return [turn for turn in before if turn], messages[-1]["content"] or ""


def from_transcript(text: str) -> tuple[list[Message], str] | None:
    """Return the same for a string whose turns start with two line ends and `Human:` or `Assistant:`."""
    pieces = TURN.split(text)
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return from_messages([{"role": name, "content": content.strip()} for name, content in turns])


def shared_prompt(
    chosen: tuple[list[Message], str] | None, rejected: tuple[list[Message], str] | None
) -> tuple[str, str, str] | None:
    """Return (prompt, chosen, rejected) of two dialogues; None unless they differ in the last response only."""
    if chosen is None or rejected is None or chosen[0] != rejected[0]:
        return None
    return (render(chosen[0]) if chosen[0] else "", chosen[1], rejected[1])
