"""Parse texts with the markers of a chat template, as trainers send them, and transcripts of dialogues."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

from tinyrm.chat import SPEAKERS, Message, Prompt, Speaker, TextOrTurns, to_message, to_messages
from tinyrm.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Markup:
    """How a family of chat templates writes turns.

    header: begins a turn. Its named group that matched is the role, or else its first group holds the role.
    end: ends a turn, as does the next header.
    begins_with_system: whether text before the first header is the system turn.
    joins_assistant: whether successive messages of the assistant are one turn: its reasoning, its calls, its reply.
    """

    header: re.Pattern[str]
    end: str
    begins_with_system: bool = False
    joins_assistant: bool = False

    def role(self, header: re.Match[str]) -> str:
        return header.lastgroup or header[1]


# The headers stand in published chat templates. Quantifiers are possessive and limited, so that a text which only looks
# like a header costs no time.
MARKUPS = (
    Markup(  # DeepSeek V3, R1, V3.1. After the results of its tools, the assistant has no header of its own.
        re.compile(
            "<\uff5c(?:(?P<user>User)|(?P<assistant>Assistant|tool\u2581outputs?\u2581end)"
            "|(?P<tool>tool\u2581outputs?\u2581begin))\uff5c>"
        ),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        begins_with_system=True,
    ),
    Markup(re.compile(r"<\|im_start\|>(\w+)\n"), "<|im_end|>"),  # ChatML: Qwen, Yi, SmolLM
    Markup(  # Kimi K2. A tool has the role of the system and its own name.
        re.compile(
            r"<\|im_(?:(?P<user>user)\|>[^<]{0,200}+|(?P<assistant>assistant)\|>[^<]{0,200}+"
            r"|(?P<system>system)\|>(?:system|tool_declare)|(?P<tool>system)\|>[^<]{0,200}+)<\|im_middle\|>"
        ),
        "<|im_end|>",
    ),
    # harmony: gpt-oss, and Muse Glimmer, which names a recipient instead of a channel. A tool has its own name as role;
    # the assistant's channel belongs to its message.
    Markup(
        re.compile(
            r"<\|start\|>(?:(?P<assistant>assistant)(?=[ <]|\Z)|(?:(?P<system>system|developer)|(?P<user>user)"
            r"|(?P<tool>[^<\s]{1,200}+))[^<]{0,200}+(?:<\|(?:channel|constrain)\|>[^<]{0,200}+){0,3}+<\|message\|>)"
        ),
        "<|return|>",
        joins_assistant=True,
    ),
    Markup(  # Command R, Command A, Aya
        re.compile(
            r"<\|START_OF_TURN_TOKEN\|><\|(?:(?P<user>USER)|(?P<assistant>CHATBOT)|(?P<system>SYSTEM))_TOKEN\|>"
            r"(?:(?:(?=<results>)|<\|START_TOOL_RESULT\|>)(?P<tool>))?"
        ),
        "<|END_OF_TURN_TOKEN|>",
    ),
    Markup(re.compile(r"<\|start_of_role\|>(\w++)[^<]{0,200}+<\|end_of_role\|>"), "<|end_of_text|>"),  # Granite
    Markup(re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*"), "<|eot_id|>"),  # Llama 3
    Markup(re.compile(r"<\|header_start\|>(\w+)<\|header_end\|>\s*"), "<|eot|>"),  # Llama 4
    Markup(re.compile(r"<start_of_turn>(\w+)\n"), "<end_of_turn>"),  # Gemma
    Markup(re.compile(r"<\|turn>(\w+)\n"), "<turn|>"),  # Gemma 4
    Markup(re.compile(r"<seed:bos>(\w+)\n"), "<seed:eos>"),  # Seed-OSS
    Markup(re.compile(r"<\|(system|user|assistant|observation)\|>\n?"), "<|end|>"),  # Phi, Zephyr, GLM
    Markup(  # Llama 2, Mistral, Magistral
        re.compile(
            r"\[(?:(?P<user>INST)|(?P<assistant>/INST|/TOOL_RESULTS)|(?P<tool>TOOL_RESULTS)"
            r"|(?P<system>SYSTEM_PROMPT|AVAILABLE_TOOLS))\]"
        ),
        "</s>",
    ),
)

# Special tokens that may surround a response if a trainer decoded it without skipping them.
SPECIAL_TOKENS = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end_of_text|>", "<|end|>", "</s>"),
    *("<s>", "<|begin_of_text|>", "<|finetune_right_pad_id|>", "<bos>", "<eos>", "<pad>", "<unk>", "<end_of_turn>"),
    *("[PAD]", "[gMASK]", "<sop>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>"),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    *("<|return|>", "<|call|>", "<|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>"),
    *("<BOS_TOKEN>", "<EOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    *("<|END_TOOL_RESULT|>", "[BOS]", "[EOS]", "[EOT]", "<turn|>"),
    *("<|eom|>", "<|start|>assistant to=user<|message|>", "to=user<|message|>"),
    *("<seed:bos>", "<seed:eos>", "<seed:pad>", "[/SYSTEM_PROMPT]", "[/AVAILABLE_TOOLS]"),
)
# How families mark the reasoning at the beginning of a response.
REASONING_TAGS = (
    *(("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>")),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought", "<channel|>"),  # Gemma 4
)
# Both tags with nothing between them, or the end alone, are how a template switches reasoning off.
NO_REASONING = "|".join(rf"(?:{re.escape(start)}\s*+)?{re.escape(end)}" for start, end in REASONING_TAGS)
SPECIAL_LEADING = re.compile(rf"(?:\s+|{'|'.join(map(re.escape, SPECIAL_TOKENS))})*+")
LEADING = re.compile(rf"(?:{SPECIAL_LEADING.pattern}(?:{NO_REASONING}))*+{SPECIAL_LEADING.pattern}")
# GLM ends a response with the header of the turn that follows.
ENDS = (*SPECIAL_TOKENS, "<|user|>", "<|observation|>")
# Matches the reversed text, so that its end is found without a search.
TRAILING = re.compile(rf"(?:\s+|{'|'.join(re.escape(token[::-1]) for token in ENDS)})*+")
# What a template may write behind the header of the turn that the policy continues: the beginning of its reasoning.
OPENED = re.compile(rf"<\|channel\|>\w+<\|message\|>|{'|'.join(re.escape(start) for start, _ in REASONING_TAGS)}")
ROLES = SPEAKERS | {"tool_response": "tool", "available_tools": "system", "tools": "system"}

# Beyond this, a text is not a dialogue but made to cost time: a million turns would take seconds.
MAX_TURNS = 10_000

# A shorter match between the end of a prompt and the beginning of a text is accidental.
MIN_OVERLAP = 16
# In a repetitive prompt the text might begin at many positions. These limits on the positions and on the compared
# characters keep the search within milliseconds.
MAX_POSITIONS = 10_000
MAX_COMPARED_CHARACTERS = 64 * 2**20


# How HH-RLHF marks the turns inside one string.
TRANSCRIPT_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class _MarkedTurn:
    role: str
    content: str
    is_empty: bool  # nothing follows the header, not even a special token

    @property
    def speaker(self) -> Speaker:
        """The speaker. Templates have further roles, such as `documents`, and they give the model information."""
        return ROLES.get(self.role.lower(), "user")


def parse_markup(text: str) -> list[Message]:
    """Return the turns of a text that begins with the marker of a known template; an empty list for any other text.

    Leaves out empty turns, among them a generation prompt: the header of a turn that has not begun.
    """
    return _to_messages(_split_prompt(text))


def parse_prompt(prompt: TextOrTurns) -> Prompt:
    """Return a policy's prompt as messages, or the text itself if it has no known template. Raises InvalidRequest."""
    return parse_markup(prompt) or prompt if isinstance(prompt, str) else to_messages(prompt)


def split_dialogue(text: str) -> tuple[Prompt, str]:
    """Return the prompt of a whole dialogue, and the assistant's last turn, which may be empty if its end is marked.

    Raises InvalidInput if the text does not end in a turn of the assistant.
    """
    turns = _split_markup(text)
    if len(turns) > 1 and turns[-1].is_empty and turns[-1].speaker != "assistant":  # a header that ends the response
        turns.pop()
    *before, last = turns or [_MarkedTurn("", "", is_empty=True)]
    prompt = _to_messages(before)
    if not prompt or last.speaker != "assistant" or last.is_empty:
        raise InvalidInput(
            "input: not a chat template that is supported, with a last turn of the assistant; docs/dialects.md lists "
            "the templates"
        )
    return prompt, last.content


def parse_turns(text: str) -> list[tuple[Speaker, str]]:
    """Return all turns of a text in a chat template, or of a transcript; an empty list for any other text.

    A transcript begins with `Human:` or `Assistant:`, and each turn is separated by an empty line from the one before.
    Of a prompt with a generation prompt, the last turn is empty.
    """
    if turns := _split_prompt(text):
        return [(turn.speaker, turn.content) for turn in turns if turn.content or turn is turns[-1]]
    if not text.lstrip().startswith(("Human:", "Assistant:")):
        return []
    pieces = TRANSCRIPT_TURN.split(text.lstrip(), MAX_TURNS + 1)
    if len(pieces) > 2 * MAX_TURNS + 1:
        return []
    return [(SPEAKERS[role.lower()], said.strip()) for role, said in zip(pieces[1::2], pieces[2::2], strict=True)]


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
    """Return the text without surrounding special tokens and white space, nor reasoning that is switched off."""
    return _strip_leading(_strip_leading(text)[::-1], TRAILING)[::-1]


def _strip_leading(text: str, leading: re.Pattern[str] = LEADING) -> str:
    found = leading.match(text)
    return text[found.end() :] if found else text


def _split_prompt(text: str) -> list[_MarkedTurn]:
    """Return the turns as `_split_markup` does. The last one is empty if it holds only what its template opened."""
    turns = _split_markup(text)
    if turns and turns[-1].speaker == "assistant" and OPENED.fullmatch(turns[-1].content):
        turns[-1] = replace(turns[-1], content="")
    return turns


def _split_markup(text: str) -> list[_MarkedTurn]:
    """Return the turns of a text that begins with the marker of a template.

    Returns none if it only mentions a marker, or has more than MAX_TURNS.
    """
    found = [(header.start(), markup) for markup in MARKUPS if (header := markup.header.search(text))]
    if not found:
        return []
    start, markup = min(found, key=lambda pair: pair[0])
    before = _strip_leading(text[:start])
    if before and not markup.begins_with_system:
        return []
    headers = list(islice(markup.header.finditer(text), MAX_TURNS + 1))
    roles = [markup.role(header) for header in headers]
    if len(headers) > MAX_TURNS or (before and "assistant" not in roles):
        return []
    first = [
        at
        for at, role in enumerate(roles)
        if not (markup.joins_assistant and at and role == roles[at - 1] == "assistant")
    ]
    ends = [headers[at].start() for at in first[1:]] + [len(text)]
    turns = [("system", text[:start])]
    turns += [(roles[at], text[headers[at].end() : end]) for at, end in zip(first, ends, strict=True)]
    return [
        _MarkedTurn(role, strip_special(content.split(markup.end, 1)[0]), is_empty=not content.strip())
        for role, content in turns
    ]


def _to_messages(turns: Iterable[_MarkedTurn]) -> list[Message]:
    return [to_message(turn.speaker, turn.content) for turn in turns if turn.content]


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
