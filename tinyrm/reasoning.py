"""Find the reasoning that a policy wrote before its response, and drop it."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from tinyrm.chat import BLANK, Prompt, to_message, write_call
from tinyrm.markup import REASONING_TAGS, SPECIAL_LEADING, strip_special

# Whether the reasoning in a response is judged with it.
Reasoning = Literal["keep", "drop"]

# Words that stand for tags. They are no tags on their own, so both must be there: gpt-oss without its special tokens,
# Granite 3.2.
PHRASES = (
    ("analysis", "assistantfinal"),
    ("Here is my thought process:", "Here is my response:"),
    ("Here's my thought process:", "Here's my response:"),
)
# The header of a message of gpt-oss. The first one of a response has no <|start|>: the template wrote it.
HARMONY_HEADER = re.compile(
    r"(?:\A|<\|start\|>)[^<]{0,200}+(?:<\|(?:channel|constrain)\|>[^<]{0,200}+){0,3}+<\|message\|>"
)
# How messages of gpt-oss and of Muse Glimmer begin that stand before the final one.
HARMONY_BEGINNINGS = ("<|channel|>", "<|start|>assistant", "to=self<|message|>")
HARMONY = ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>")
BEGINNINGS = (HARMONY[0], HARMONY_BEGINNINGS[-1], *(start for start, _ in REASONING_TAGS))
RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^<\s]+)")
# On both sides of a tag, these mean that the response speaks of it.
QUOTES = ("`", "'", '"')
BEFORE_QUOTES = " \t\n([{=,:"
CODE = "```"


def judged(reasoning: Reasoning, prompt: Prompt, responses: Sequence[str]) -> tuple[Prompt, Sequence[str]]:
    """Return a prompt and responses as they are judged; a response of which nothing is left is a blank."""
    if reasoning == "keep":
        return prompt, responses
    return drop_from_prompt(prompt), [drop_reasoning(response) or BLANK for response in responses]


def begins_with_reasoning(text: str) -> bool:
    """Return whether a response begins with a tag of reasoning, or is in the analysis of gpt-oss."""
    beginning = SPECIAL_LEADING.match(text)
    return text.startswith(BEGINNINGS, beginning.end() if beginning else 0)


def is_empty(response: str, reasoning: Reasoning = "keep") -> bool:
    """Return whether nothing is judged of a response but white space and special tokens."""
    return not strip_special(drop_reasoning(response) if reasoning == "drop" else response)


def drop_reasoning(text: str) -> str:
    """Return a response without its reasoning, which may leave nothing; a text without reasoning as it is.

    Reasoning stands at the beginning, between tags that published chat templates use. If it has no end, the generation
    ran out before the response began. If it has no beginning, the template wrote that, and everything before the first
    end is reasoning: except an end in quotes, in code, or behind a beginning, of which the response speaks. Behind
    reasoning at the beginning, further parts between the same tags are dropped that begin a line or a turn: after the
    result of a tool, the policy reasons again.
    """
    beginning = SPECIAL_LEADING.match(text)
    body = text[beginning.end() :] if beginning else text
    if body.startswith(HARMONY_BEGINNINGS) or _find_end(body, *HARMONY) >= 0:
        return _drop_analysis(body)
    for start, end in PHRASES:
        if body.startswith(start) and end in body:
            return strip_special(body.partition(end)[2])
    for start, end in REASONING_TAGS:
        if body.startswith(start):
            return _drop_parts(body, len(start), start, end)
    ends = [(at, start, end) for start, end in REASONING_TAGS if (at := _find_end(body, start, end)) >= 0]
    return _drop_parts(body, *min(ends)) if ends else text


def drop_from_prompt(prompt: Prompt) -> Prompt:
    """Return a prompt whose turns of the assistant have no reasoning; turns that were nothing else are left out."""
    if isinstance(prompt, str):
        return prompt
    turns = [
        (turn["role"], drop_reasoning(turn["content"]) if turn["role"] == "assistant" else turn["content"])
        for turn in prompt
    ]
    return [to_message(role, content) for role, content in turns if content] or prompt


def _drop_parts(text: str, at: int, start: str, end: str) -> str:
    """Return the text without the part around `at`, from its beginning to `end`, and without further parts."""
    kept = []
    while at >= 0 and (stop := text.find(end, at)) >= 0:
        after = stop + len(end)
        at = _find_next(text, after, start)
        kept.append(text[after : at if at >= 0 else None])
    response = strip_special("".join(kept))
    if response.startswith("<response>"):  # Granite 3.3
        response = strip_special(response.removeprefix("<response>").removesuffix("</response>"))
    return response


def _find_next(text: str, at: int, start: str) -> int:
    """Return where the next part begins a line or a turn, outside of code; -1 if none does."""
    for found, is_code in _find_all(text, at, start):
        if not is_code and text.endswith(("\n", "|>", "\uff5c>"), 0, found):
            return found
    return -1


def _find_end(text: str, start: str, end: str) -> int:
    """Return where the first end of reasoning is whose beginning is not in the text; -1 if there is none.

    An end in quotes or in code, or behind `start`, is none.
    """
    begun = text.find(start)
    for found, is_code in _find_all(text, 0, end):
        if 0 <= begun < found:
            return -1
        if not (is_code or _is_quoted(text, found, found + len(end))):
            return found
    return -1


def _is_quoted(text: str, begin: int, end: int) -> bool:
    """Return whether the same mark stands on both sides, and the first one begins a quotation instead of ending one."""
    mark = text[begin - 1 : begin]
    return mark in QUOTES and text[end : end + 1] == mark and (begin < 2 or text[begin - 2] in BEFORE_QUOTES)


def _find_all(text: str, at: int, tag: str) -> Iterator[tuple[int, bool]]:
    """Yield the places of a tag from `at` on, and whether it stands in code that begins behind `at`."""
    is_code = False
    while (found := text.find(tag, at)) >= 0:
        is_code ^= text.count(CODE, at, found) % 2 == 1
        yield found, is_code
        at = found + len(tag)


def _drop_analysis(text: str) -> str:
    """Return what messages of gpt-oss say outside of the channel `analysis`, or to others than itself.

    Calls of tools become text.
    """
    headers = list(HARMONY_HEADER.finditer(text))
    if not headers:  # the generation ran out inside the first one
        return ""
    ends = [header.start() for header in headers[1:]] + [len(text)]
    kept = []
    for header, end in zip(headers, ends, strict=True):
        content, found = strip_special(text[header.end() : end]), RECIPIENT.search(header[0])
        recipient = found[1] if found else "user"
        if "<|channel|>analysis" in header[0] or recipient == "self" or not content:
            continue
        if recipient not in ("user", "assistant"):
            content = write_call({"name": recipient, "arguments": content})
        kept.append(content)
    return "\n\n".join(kept)
