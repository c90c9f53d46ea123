"""Convert dialogues: chat messages, lists of content parts, and texts with the markers of a chat template."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # pydantic does not accept typing.TypedDict before Python 3.12
)

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from tinyrm.errors import InvalidInput

Role = Literal["system", "user", "assistant"]


@with_config(ConfigDict(extra="forbid"))
class Message(TypedDict):
    """One turn of a dialogue."""

    role: Role
    content: Annotated[str, Field(min_length=1)]


class Turn(TypedDict):
    """A message in the form of trainers and data sets; other fields, such as tool calls, are ignored."""

    role: str
    content: NotRequired[str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None]


Prompt = str | list[Message]
# A prompt or a completion in the form of trainers and data sets; each turn has at least the fields of `Turn`.
Turns = Sequence[Mapping[str, Any]]
TextOrTurns = str | Turns

# Replaces an empty response: the service accepts no empty text, and the other responses should win against it.
BLANK = " "

# Roles in templates and APIs. Any other role, such as a tool, counts as the user: it gives the model information.
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "Assistant": "assistant",
    "/INST": "assistant",
}


def join_parts(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Return the text of a message's content, which is a text or a list of parts; parts without text are left out."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if isinstance(part.get("text"), str))


def to_messages(turns: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return role and text of each turn that has text."""
    return [
        Message(role=ROLES.get(turn["role"], "user"), content=text)
        for turn in turns
        if (text := join_parts(turn.get("content")))
    ]


def to_prompt(prompt: TextOrTurns) -> Prompt:
    """Return a prompt that the service accepts: a text unchanged, turns as messages, a blank if there is no text."""
    return (prompt if isinstance(prompt, str) else to_messages(prompt)) or BLANK


def to_response(completion: TextOrTurns) -> str:
    """Return a completion as one text; several turns (a tool call, its result, a reply) are joined in order."""
    if isinstance(completion, str):
        return completion or BLANK
    return "\n\n".join(message["content"] for message in to_messages(completion)) or BLANK


def split_turns(turns: Turns) -> tuple[list[Message], str]:
    """Return the prompt of a conversation, and its last turn as the response.

    Raises ValueError if there is no turn before the last.
    """
    if len(turns) < 2:
        raise ValueError(f"a conversation must have a prompt and a response, at least 2 messages; got {len(turns)}")
    return to_messages(turns[:-1]), to_response(turns[-1:])


# Texts in the markup of a chat template


@dataclass(frozen=True, slots=True)
class Markup:
    """How a family of chat templates writes turns."""

    header: re.Pattern[str]  # begins a turn; its group is the role
    end: str  # ends a turn, as does the next header
    begins_with_system: bool = False  # whether text before the first header is the system turn


MARKUPS = (
    Markup(
        re.compile(r"<\uff5c(User|Assistant)\uff5c>"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        begins_with_system=True,  # DeepSeek
    ),
    Markup(re.compile(r"<\|im_start\|>(\w+)\n"), "<|im_end|>"),  # ChatML: Qwen, Yi, SmolLM
    Markup(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*"), "<|eot_id|>"),  # Llama 3
    Markup(re.compile(r"<\|header_start\|>(\w+)<\|header_end\|>\s*"), "<|eot|>"),  # Llama 4
    Markup(re.compile(r"<start_of_turn>(\w+)\n"), "<end_of_turn>"),  # Gemma
    Markup(re.compile(r"<\|(system|user|assistant|observation)\|>\n?"), "<|end|>"),  # Phi, Zephyr, GLM
    Markup(re.compile(r"\[(/?INST)\]"), "</s>"),  # Llama 2, Mistral
)

# Special tokens that may surround a response if a trainer decoded it without skipping them.
SPECIAL_TOKENS = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end_of_text|>", "<|end|>", "</s>"),
    *("<s>", "<|begin_of_text|>", "<|finetune_right_pad_id|>", "<bos>", "<eos>", "<pad>", "<unk>", "<end_of_turn>"),
    *("[PAD]", "[gMASK]", "<sop>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>"),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
LEADING = re.compile(rf"(?:\s+|{'|'.join(map(re.escape, SPECIAL_TOKENS))})*+")
# Matches the reversed text, so that its end is found without a search.
TRAILING = re.compile(rf"(?:\s+|{'|'.join(re.escape(token[::-1]) for token in SPECIAL_TOKENS)})*+")

# A shorter match between the end of a prompt and the beginning of a text is accidental.
MIN_OVERLAP = 16
# In a repetitive prompt the text might begin at many positions. These limits on the positions and on the compared
# characters keep the search within milliseconds.
MAX_POSITIONS = 10_000
MAX_COMPARED_CHARACTERS = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _MarkedTurn:
    role: str
    content: str
    is_empty: bool  # nothing follows the header, not even a special token


def parse_markup(text: str) -> list[Message]:
    """Return the turns of a text that begins with the marker of a known template; an empty list for any other text.

    Leaves out empty turns, among them a generation prompt: the header of a turn that has not begun.
    """
    return to_messages({"role": turn.role, "content": turn.content} for turn in _split_markup(text))


def parse_prompt(prompt: str | Sequence[Turn]) -> Prompt:
    """Return a policy's prompt as messages, or the text itself if it has no known template."""
    return parse_markup(prompt) or prompt if isinstance(prompt, str) else to_messages(prompt)


def split_dialogue(text: str) -> tuple[Prompt, str]:
    """Return the prompt of a whole dialogue, and the assistant's last turn, which may be empty if its end is marked.

    Raises InvalidInput if the text does not end in a turn of the assistant.
    """
    *before, last = _split_markup(text) or [_MarkedTurn("", "", is_empty=True)]
    prompt = to_messages({"role": turn.role, "content": turn.content} for turn in before)
    if not prompt or ROLES.get(last.role) != "assistant" or last.is_empty:
        raise InvalidInput(
            "input: not a chat template that is supported (ChatML, Llama, Gemma, Mistral, Phi, DeepSeek) with a last "
            "turn of the assistant; see docs/dialects.md"
        )
    return prompt, last.content


def find_response(query: str, prompt: str) -> str:
    """Return `query` without the prompt at its beginning and without surrounding special tokens.

    Also finds a prompt that was truncated on its left, so that only its end is there. Without any part of the prompt,
    the whole query is the response.
    """
    for text, beginning in ((query, prompt), (_strip_leading(query), _strip_leading(prompt))):
        if text.startswith(beginning):
            return strip_special(text[len(beginning) :])
    return strip_special(query[_overlap(prompt, query) :])


def strip_special(text: str) -> str:
    """Return the text without surrounding special tokens and white space."""
    return _strip_leading(_strip_leading(text)[::-1], TRAILING)[::-1]


def _strip_leading(text: str, leading: re.Pattern[str] = LEADING) -> str:
    found = leading.match(text)
    return text[found.end() :] if found else text


def _split_markup(text: str) -> list[_MarkedTurn]:
    """Return the turns of a text that begins with the marker of a template; none if it only mentions a marker."""
    found = [(header.start(), markup) for markup in MARKUPS if (header := markup.header.search(text))]
    if not found:
        return []
    start, markup = min(found, key=lambda pair: pair[0])
    if _strip_leading(text[:start]) and not markup.begins_with_system:
        return []
    headers = list(markup.header.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    turns = [("system", text[: headers[0].start()])]
    turns += [(header[1], text[header.end() : end]) for header, end in zip(headers, ends, strict=True)]
    return [
        _MarkedTurn(role, strip_special(content.split(markup.end, 1)[0]), is_empty=not content.strip())
        for role, content in turns
    ]


def _overlap(prompt: str, query: str) -> int:
    """Return the length of the longest suffix of `prompt` that is a prefix of `query`."""
    head, position = query[:MIN_OVERLAP], -1
    if len(head) < MIN_OVERLAP:
        return 0
    tail, budget = prompt[-MIN_OVERLAP:], MAX_COMPARED_CHARACTERS
    for _ in range(MAX_POSITIONS):
        position = prompt.find(head, position + 1)
        if position < 0:
            return 0
        length = len(prompt) - position
        # The cheap comparison first: the long one copies.
        if query[length - MIN_OVERLAP : length] == tail:
            budget -= length
            if budget < 0:
                return 0
            if query.startswith(prompt[position:]):
                return length
    return 0
