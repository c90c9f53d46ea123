"""Dialogues as trainers write them: messages with parts, or one text with the markers of a chat template."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tinyrm.chat import Message
from tinyrm.errors import InvalidInput

Prompt = str | list[Message]

# Who speaks, by what templates and APIs call them. Everybody else, such as a tool, tells the model something, as the
# user does.
ROLES = {
    "system": "system", "developer": "system", "assistant": "assistant", "model": "assistant", "ai": "assistant",
    "Assistant": "assistant", "/INST": "assistant",
}  # fmt: skip


class Turn(BaseModel):
    """A message as trainers send it; what else it holds, such as calls of tools, is not read."""

    role: str
    content: str | list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """header: begins a turn and names its speaker. end: what ends it, if not the next header.

    says_first: what stands before the first header is the system's; in the others nothing does.
    """

    header: re.Pattern[str]
    end: str
    says_first: bool = False


DEEPSEEK = Family(
    re.compile(r"<\uff5c(User|Assistant)\uff5c>"), "<\uff5cend\u2581of\u2581sentence\uff5c>", says_first=True
)
FAMILIES = (
    DEEPSEEK,
    *(
        Family(re.compile(header), end)
        for header, end in (
            (r"<\|im_start\|>(\w+)\n", "<|im_end|>"),  # ChatML: Qwen, Yi, SmolLM
            (r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*", "<|eot_id|>"),  # Llama 3
            (r"<\|header_start\|>(\w+)<\|header_end\|>\s*", "<|eot|>"),  # Llama 4
            (r"<start_of_turn>(\w+)\n", "<end_of_turn>"),  # Gemma
            (r"<\|(system|user|assistant|observation)\|>\n?", "<|end|>"),  # Phi, Zephyr, GLM
            (r"\[(/?INST)\]", "</s>"),  # Llama 2, Mistral
        )
    ),
)

# What may stand around a response when a trainer decodes it with its special tokens.
SPECIAL = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end_of_text|>", "<|end|>", "</s>", "<s>",
    "<|begin_of_text|>", "<|finetune_right_pad_id|>", "<bos>", "<eos>", "<pad>", "<unk>", "<end_of_turn>", "[PAD]",
    "[gMASK]", "<sop>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip

LEADING = re.compile(rf"(?:\s+|{'|'.join(map(re.escape, SPECIAL))})*+")
# Of a text read backwards, so that its end is found without a search.
TRAILING = re.compile(rf"(?:\s+|{'|'.join(re.escape(token[::-1]) for token in SPECIAL)})*+")

# Shorter agreement between the end of a prompt and the beginning of a text is chance.
MIN_OVERLAP = 16
# A prompt that repeats itself has many places where the text might begin; this many are looked at, and this many
# characters are compared, which takes some milliseconds.
MOST_PLACES = 10_000
MOST_COMPARED_CHARACTERS = 64 * 2**20


def turns_of(text: str) -> list[Message]:
    """The turns of a text in the template whose marker it begins with; none if it has none, or only speaks of one.

    Empty ones are left out, and so is a generation prompt: the header of a turn that has not begun.
    """
    return [message_of(part.role, part.content) for part in _parts_of(text) if part.content]


def prompt_of(prompt: str | Sequence[Turn]) -> Prompt:
    """A prompt as a policy gets it: its turns, or the text itself if it has no template."""
    if isinstance(prompt, str):
        return turns_of(prompt) or prompt
    return [message_of(turn.role, text) for turn in prompt if (text := text_of(turn.content))]


def last_turn(text: str) -> tuple[Prompt, str]:
    """A whole dialogue: what was said, and the assistant's last turn, which may be empty if it has an end.

    Raises InvalidInput if it does not end in one.
    """
    *before, last = _parts_of(text) or [_Part("", "", has_ended=False)]
    prompt = [message_of(part.role, part.content) for part in before if part.content]
    has_spoken = last.content or last.has_ended
    if not prompt or ROLES.get(last.role) != "assistant" or not has_spoken:
        raise InvalidInput(
            "input: no chat template that is known here (ChatML, Llama, Gemma, Mistral, Phi, DeepSeek) with a last "
            "turn of the assistant; see docs/dialects.md"
        )
    return prompt, last.content


def response_in(query: str, prompt: str) -> str:
    """`query` without the prompt at its beginning, and without special tokens around.

    A prompt that was cut on its left, so that only its end is there, is found too. If nothing of it is there, the
    response is the whole query.
    """
    for text, beginning in ((query, prompt), (without_leading(query), without_leading(prompt))):
        if text.startswith(beginning):
            return stripped(text[len(beginning) :])
    return stripped(query[_overlap(prompt, query) :])


def stripped(text: str) -> str:
    """Without special tokens and white space around it."""
    return without_leading(without_leading(text)[::-1], TRAILING)[::-1]


def without_leading(text: str, leading: re.Pattern[str] = LEADING) -> str:
    found = leading.match(text)
    return text[found.end() :] if found else text


def message_of(role: str, content: str) -> Message:
    known: Any = ROLES.get(role, "user")
    return Message(role=known, content=content)


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """The text of a message's content: of a list of parts, those that have text."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if isinstance(part.get("text"), str))


@dataclass(frozen=True, slots=True)
class _Part:
    """A turn as it stands in a text. has_ended: something follows its header, be it special tokens."""

    role: str
    content: str
    has_ended: bool


def _parts_of(text: str) -> list[_Part]:
    """Of the template whose marker the text begins with; none if it has none, or only speaks of one."""
    found = [(header.start(), family) for family in FAMILIES if (header := family.header.search(text))]
    if not found:
        return []
    start, family = min(found, key=lambda pair: pair[0])
    if without_leading(text[:start]) and not family.says_first:
        return []
    headers = list(family.header.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    turns = [("system", text[: headers[0].start()])]
    turns += [(header[1], text[header.end() : end]) for header, end in zip(headers, ends, strict=True)]
    return [_Part(role, stripped(said.split(family.end, 1)[0]), bool(said.strip())) for role, said in turns]


def _overlap(prompt: str, query: str) -> int:
    """Characters of the longest end of `prompt` that `query` begins with."""
    head, place = query[:MIN_OVERLAP], -1
    if len(head) < MIN_OVERLAP:
        return 0
    tail, left = prompt[-MIN_OVERLAP:], MOST_COMPARED_CHARACTERS
    for _ in range(MOST_PLACES):
        place = prompt.find(head, place + 1)
        if place < 0:
            return 0
        length = len(prompt) - place
        # The cheap look first: the long one copies.
        if query[length - MIN_OVERLAP : length] == tail:
            left -= length
            if left < 0:
                return 0
            if query.startswith(prompt[place:]):
                return length
    return 0
