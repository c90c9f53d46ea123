"""Convert chat messages of every common form to messages of a role and a text: one mapping for the whole product."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # pydantic does not accept typing.TypedDict before Python 3.12
)

from pydantic import ConfigDict, Discriminator, Field, Tag, with_config
from typing_extensions import TypedDict

from tinyrm.errors import BRANCH, InvalidRequest, MissingText, UnknownForm

Role = Literal["system", "user", "assistant"]
Speaker = Literal["system", "user", "assistant", "tool"]


@with_config(ConfigDict(extra="forbid"))
class Message(TypedDict):
    """One turn of a dialogue, as the model reads it."""

    role: Role
    content: Annotated[str, Field(min_length=1)]


@with_config(ConfigDict(extra="allow"))
class ContentPart(TypedDict):
    """A part of a message. Only parts with text can be read."""

    type: NotRequired[Annotated[str, Field(description="Its kind; one with text.")]]
    text: NotRequired[Annotated[str | None, Field(description="Its text.")]]


def text_branch(value: Any) -> str:
    """Return the branch of a union by type, so that an invalid list is not reported as an invalid string."""
    return LIST if isinstance(value, list) else TEXT


TEXT, LIST = f"{BRANCH}text", f"{BRANCH}list"
# Ends at the first invalid element: an error for each would take many times as long as parsing the body.
FAIL_FAST = Field(fail_fast=True)
Content = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[ContentPart], FAIL_FAST, Tag(LIST)], Discriminator(text_branch)
]


@with_config(ConfigDict(extra="forbid"))
class ChatMessage(TypedDict):
    """One turn of a dialogue, as chat APIs write it. `tool_calls` become text; the last fields are not read."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool", "function"],
        Field(description="The speaker. The model reads developer as the system, and tool and function as the user."),
    ]
    content: NotRequired[
        Annotated[Content | None, Field(description="A text, or parts with texts; null beside calls of tools.")]
    ]
    tool_calls: NotRequired[
        Annotated[
            Annotated[list[dict[str, Any]], FAIL_FAST] | None, Field(description="Calls of tools; each becomes text.")
        ]
    ]
    function_call: NotRequired[Annotated[dict[str, Any] | None, Field(description="One call, in the older form.")]]
    refusal: NotRequired[Annotated[str | None, Field(description="Read in place of an empty content.")]]
    name: NotRequired[Annotated[str | None, Field(description="Not read.")]]
    tool_call_id: NotRequired[Annotated[str | None, Field(description="Not read.")]]
    reasoning_content: NotRequired[Annotated[str | None, Field(description="Not read: reasoning is not judged.")]]
    annotations: NotRequired[Annotated[list[Any] | None, Field(description="Not read.")]]
    audio: NotRequired[Annotated[None, Field(description="Not read: the model reads text only.")]]


class Dialogue(str):
    """Messages as one text, with the messages: a template that writes tokens of its own between turns needs those."""

    messages: tuple[Message, ...] = ()

    def __eq__(self, other: object) -> bool:
        """Differ from a plain text of the same characters, which a template with turns writes otherwise."""
        return isinstance(other, Dialogue) and self.messages == other.messages

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Dialogue, str(self)))

    @classmethod
    def of(cls, text: str, messages: Iterable[Message]) -> "Dialogue":
        dialogue = cls(text)
        dialogue.messages = tuple(messages)
        return dialogue


Prompt = str | list[Message]


def unrendered(text: str) -> Prompt:
    """Return a prompt as it is sent: the messages of a Dialogue, or the text."""
    return list(text.messages) if isinstance(text, Dialogue) else text


# A prompt or a completion in the form of trainers and data sets; `read_turn` lists the forms of a turn.
Turns = Sequence[Mapping[str, Any]]
TextOrTurns = str | Turns

# Replaces an empty response: the service accepts no empty text, and the other responses should win against it.
BLANK = " "

# The roles of chat templates, APIs and data sets. A tool counts as the user for the model: it gives information.
SPEAKERS: dict[str, Speaker] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "model", "ai", "gpt", "chatgpt", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "environment"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
# The keys of a turn, in the order in which they are looked for.
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value", "text")
# Parts with the reasoning before a response: it is not judged.
REASONING = ("reasoning", "thinking", "redacted_thinking", "reasoning_text")
# A tool's result may be a list of parts again.
MAX_DEPTH = 4


def read_turn(turn: Mapping[str, Any]) -> tuple[Speaker, str]:
    """Return the speaker and the text of a turn, which may be empty.

    A turn has a role and a content (chat APIs), `from` and `value` (ShareGPT), or a `type` (items of the Responses
    API). The content is a text, a list of parts, or None. Calls of tools become text.

    Raises UnknownForm, which names the keys of a turn in another form, and InvalidRequest.
    """
    if type(turn) is dict and len(turn) == 2:  # the usual form, without the many questions of the others
        role, content = turn.get("role"), turn.get("content")
        if type(role) is str and role in SPEAKERS and (type(content) is str or (content is None and "content" in turn)):
            return SPEAKERS[role], content or ""
    if not isinstance(turn, Mapping):
        raise UnknownForm(f"a message must be an object with a role and a content, not {_kind(turn)}")
    kind = turn.get("type")
    if kind in ("function_call", "custom_tool_call"):
        return "assistant", write_call(turn)
    if kind in ("function_call_output", "custom_tool_call_output"):
        return "tool", join_parts(turn.get("output"))
    return ("assistant", "") if kind in REASONING else _read_message(turn)


def _read_message(turn: Mapping[str, Any]) -> tuple[Speaker, str]:
    role = next((turn[key] for key in ROLE_KEYS if turn.get(key) is not None), None)
    keys = [key for key in TEXT_KEYS if key in turn]
    calls = [call for call in _list_calls(turn.get("tool_calls")) + _list_calls(turn.get("function_call")) if call]
    refusal = turn["refusal"] if isinstance(turn.get("refusal"), str) else ""
    if role is None or not (keys or calls or refusal):
        raise UnknownForm(f"a message must have a role and a content; this one has {list_keys(turn)}")
    speaker = SPEAKERS.get(role.lower()) if isinstance(role, str) else None
    if speaker is None:
        raise InvalidRequest(f"a message has the unknown role {str(role)[:40]!r}; known are {', '.join(SPEAKERS)}")
    content = next((turn[key] for key in keys if turn[key] is not None), None)
    text = join_parts(content) or refusal
    return speaker, "\n".join(filter(None, [text, *map(write_call, calls)]))


def join_parts(content: Any, depth: int = 0) -> str:
    """Return the text of a message's content, which is a text or a list of parts.

    Raises InvalidRequest for a part that is not text, such as an image: a judgement without it would be of another
    message.
    """
    if hasattr(content, "tolist"):  # NumPy, in which pandas holds lists
        content = content.tolist()
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple) or depth > MAX_DEPTH:
        raise InvalidRequest(f"the content of a message must be a text or a list of parts, not {_kind(content)}")
    return "".join(_read_part(part, depth) for part in content)


def _read_part(part: Any, depth: int) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidRequest(f"a part of a message must be a text or an object with a text, not {_kind(part)}")
    for key in ("text", "refusal"):
        if isinstance(part.get(key), str):
            return str(part[key])
    kind = part.get("type")
    if kind in REASONING:
        return ""
    if kind == "tool_use":
        return write_call(part)
    if kind == "tool_result":
        return join_parts(part.get("content"), depth + 1)
    what = f"of type {str(kind)[:40]!r}" if kind is not None else f"with {list_keys(part)}"
    raise InvalidRequest(f"a part of a message {what} has no text; the model reads text only")


def _list_calls(calls: Any) -> list[Any]:
    """Return calls of tools as a list: one call may stand alone, or as a text."""
    if hasattr(calls, "tolist"):
        calls = calls.tolist()
    if isinstance(calls, list | tuple):
        return list(calls)
    return [calls] if calls else []


def write_call(call: Any) -> str:
    """Return the call of a tool as text. Raises InvalidRequest for an object that is no call."""
    if isinstance(call, str):
        return f"<tool_call>{call}</tool_call>"
    function = (call.get("function") or call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        keys = list_keys(call) if isinstance(call, Mapping) else _kind(call)
        raise InvalidRequest(f"a call of a tool must have the name of a function; this one has {keys}")
    arguments: Any = next((function[key] for key in ("arguments", "input", "parameters") if function.get(key)), {})
    if not isinstance(arguments, str):  # a text is JSON already, as the policy wrote it
        arguments = json.dumps(arguments, ensure_ascii=False, default=str)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>{{"name": {name}, "arguments": {arguments}}}</tool_call>'


def to_messages(turns: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return role and text of each turn that has text. Raises InvalidRequest."""
    read = map(read_turn, turns)
    return [to_message(speaker, text) for speaker, text in read if text]


def to_message(speaker: Speaker, text: str) -> Message:
    return Message(role="user" if speaker == "tool" else speaker, content=text)


def to_prompt(prompt: TextOrTurns) -> Prompt:
    """Return a prompt that the service accepts: a text unchanged, turns as messages, a blank if there is no text.

    Raises InvalidRequest.
    """
    return (prompt if isinstance(prompt, str) else to_messages(list_turns(prompt, "a prompt"))) or BLANK


def to_response(completion: TextOrTurns) -> str:
    """Return a completion as one text; several turns (a tool call, its result, a reply) are joined in order.

    Raises InvalidRequest.
    """
    if isinstance(completion, str):
        return completion or BLANK
    return join_turns(map(read_turn, list_turns(completion, "a response"))) or BLANK


def list_turns(value: Any, name: str) -> list[Any]:
    """Return the turns that a value holds, in whatever container. Raises MissingText, UnknownForm."""
    if hasattr(value, "tolist"):  # NumPy, in which pandas holds lists
        value = value.tolist()
    if isinstance(value, Mapping):
        # Some versions of `datasets` hold a list of messages as one list for each key.
        lists = {key: part for key, part in value.items() if isinstance(part, list)}
        is_table = len(lists) == sum(part is not None for part in value.values())
        if not is_table or len({len(part) for part in lists.values()}) != 1:
            return [value]
        return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=True)]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise MissingText(f"{name} is null")
    if not isinstance(value, list | tuple):
        raise UnknownForm(f"{name} must be a text or a list of messages, not {_kind(value)}")
    return list(value)


def join_turns(turns: Iterable[tuple[Speaker, str]]) -> str:
    return "\n\n".join(text for _, text in turns if text)


def list_keys(mapping: Mapping[Any, Any]) -> str:
    """Return the keys of an object for an error message."""
    keys = [str(key)[:40].encode(errors="backslashreplace").decode() for key in mapping]
    return f"the keys {', '.join(keys[:20])}{', ...' if len(keys) > 20 else ''}" if keys else "no keys"


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
