"""The text around a comparison, or around one response, as data.

A template is a list of segments. A segment is one of

* a special token by role: ``[CLS]``, ``[SEP]`` or ``[MASK]``;
* a slot, with the text that joins it to the previous segment: `` {prompt}``;
* fixed text, in which a special token of the tokenizer is one.

Each segment is encoded separately and the ids are concatenated. The text is never built as one string, so user text
that contains ``[MASK]`` or ``Choice 1:`` remains plain text.

Why the joining space belongs to the slot: byte-level BPE has one token for " word" and another for "word". With the
space, the user's text begins as it would in running text; a fixed segment that ended in a space would leave a separate
space token there.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tinyrm.chat import Dialogue, Message, Role
from tinyrm.errors import InvalidTemplate

Slot = Literal["instruction", "prompt", "response_a", "response_b", "response"]
# What one sequence holds: both responses of a comparison, one response, or all responses of a group.
Reads = Literal["pair", "response", "set"]
ROLES: tuple[Role, ...] = get_args(Role)
SPECIAL_ROLES = ("[CLS]", "[SEP]", "[MASK]")

RESPONSE_SLOTS: dict[Reads, tuple[Slot, ...]] = {
    "pair": ("response_a", "response_b"),
    "response": ("response",),
    "set": ("response",),
}
# How a template of a set ends: this part is repeated for each response, and each is read at its own mask.
READ_AT_ITS_MASK = ("[MASK]", "[SEP]")

_SLOTS = get_args(Slot)
_SLOT = re.compile(rf"(?P<joint>[^{{}}]*)\{{(?P<slot>{'|'.join(_SLOTS)})\}}")
_BRACES = re.compile(r"\{\w+\}")


# Fields of a template that older files lack; those that are not set are not written.
_LATER = ("turns", "prompt_share")


class Turn(BaseModel):
    """The fixed texts around a message of a chat; `joint` is encoded together with it, as the joint of a slot is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: str
    joint: str = ""
    after: str = ""


class Template(BaseModel):
    """Segments in order, with the slots of a comparison or of one response; `{instruction}` may be missing.

    A template of a set ends in `[SEP]`, `{response}`, `[MASK]`, `[SEP]`, of which the last three are repeated for each
    response. It has no other `[MASK]` or `[SEP]`: they are the boundaries that the model finds in the ids.

    label_words: the words at the mask, for the first choice and the second; None without a mask.
    turns: how each speaker's messages are written in the prompt; a prompt of one text is a message of the user. None:
        a prompt is plain text, and `turn_names` name the speakers in it.
    prompt_share: the largest part of the room for texts that the prompt takes; both responses get one half of the rest
        each. None: all texts share it fairly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    segments: tuple[str, ...]
    label_words: tuple[str, str] | None = None
    turn_names: dict[str, str] = Field(
        default={"system": "System", "user": "Human", "assistant": "Assistant"},
        description="Names of the speakers in the prompt text that chat messages become.",
    )
    turns: dict[Role, Turn] | None = None
    prompt_share: float | None = Field(default=None, gt=0, lt=1)

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the templates of older bundles as they were written then: their hash must not change."""
        return {name: value for name, value in handler(self).items() if name not in _LATER or value is not None}

    @model_validator(mode="after")
    def _each_part_exactly_once(self) -> Self:
        if self.reads != "set" and self.segments.count("[MASK]") != (self.label_words is not None):
            raise ValueError("a template needs exactly one [MASK] segment, or neither a mask nor label words")
        if wrong := [text for text, slot in map(split_slot, self.segments) if slot is None and _BRACES.search(text)]:
            raise ValueError(f"a slot is one of {', '.join(_SLOTS)}, and ends its segment; got {wrong}")
        slots = sorted({*self.slots, "instruction"})
        if len(set(self.slots)) < len(self.slots) or slots not in (
            ["instruction", "prompt", *names] for names in RESPONSE_SLOTS.values()
        ):
            raise ValueError(
                "a template needs {prompt} and either {response_a} and {response_b} or {response}, each slot exactly "
                f"once, and may have {{instruction}}; got {sorted(self.slots)}"
            )
        if self.label_words and self.reads == "response":
            raise ValueError("a template of one response has no [MASK]: nothing is chosen there")
        if self.turns is not None and set(self.turns) != set(ROLES):
            raise ValueError(f"turns need each of {', '.join(ROLES)}")
        if self.prompt_share and self.reads != "pair":
            raise ValueError("prompt_share is for a template of two responses")
        # Swapping the order swaps ids, which include the joining text.
        if len({joint for joint, slot in map(split_slot, self.segments) if slot in ("response_a", "response_b")}) > 1:
            raise ValueError("both responses need the same joining text; put the rest into separate segments")
        return self

    @model_validator(mode="after")
    def _set_has_its_boundaries(self) -> Self:
        if self.reads != "set":
            return self
        counts = self.segments.count("[MASK]"), self.segments.count("[SEP]")
        if counts != (1, 2) or self.segments[-4:-3] != ("[SEP]",):
            raise ValueError(
                "a template of a set ends in [SEP], {response}, [MASK], [SEP], and has no other [MASK] or [SEP]"
            )
        if self.label_words:
            raise ValueError("a template of a set has no label words: each response has one score")
        return self

    @property
    def slots(self) -> list[Slot]:
        return [slot for _, slot in map(split_slot, self.segments) if slot]

    @property
    def reads(self) -> Reads:
        if "response" not in self.slots:
            return "pair"
        return "set" if self.segments[-2:] == READ_AT_ITS_MASK else "response"

    def of_one_response(self) -> Self:
        """Return the template of one response with the same wording: up to the first response, then [SEP].

        Raises InvalidTemplate if another part comes after the first response.
        """
        before, joint = self._before_response()
        return self._changed("response", (*before, f"{joint}{{response}}", "[SEP]"))

    def of_a_set(self) -> Self:
        """Return the template of a set with the same wording before the responses, without the number of a choice.

        Raises InvalidTemplate if another part comes after the first response.
        """
        before, joint = self._before_response()
        while before and split_slot(before[-1])[1] is None:  # " Choice 0:"
            before = before[:-1]
        return self._changed("set", (*before, "[SEP]", f"{joint}{{response}}", *READ_AT_ITS_MASK))

    def _before_response(self) -> tuple[tuple[str, ...], str]:
        """Return the segments before the first response of a pair, and the text that joins it."""
        slots = self.slots
        at = next((i for i, segment in enumerate(self.segments) if split_slot(segment)[1] == "response_a"), 0)
        if (
            self.reads != "pair"
            or sorted(slots[:-2]) not in (["instruction", "prompt"], ["prompt"])
            or (slots[-2:] != ["response_a", "response_b"])
        ):
            raise InvalidTemplate(
                f"template {self.name!r} lacks instruction or prompt before its first response, so it cannot show one "
                "response alone; use figure2 or answer-colon"
            )
        return self.segments[:at], split_slot(self.segments[at])[0]

    def _changed(self, kind: str, segments: tuple[str, ...]) -> Self:
        changed = {"name": f"{self.name}-{kind}", "segments": segments, "label_words": None}
        return type(self).model_validate(self.model_dump() | changed)

    def render_messages(self, messages: Sequence[Message]) -> str:
        """Return chat messages as one text; a single user message gets no speaker name, as in the training pairs.

        For a template with turns it is a Dialogue, which the encoder reads message by message.
        """
        if len(messages) == 1 and messages[0]["role"] == "user":
            return messages[0]["content"]
        text = "\n\n".join(f"{self.turn_names[m['role']]}: {m['content']}" for m in messages)
        return Dialogue.of(text, messages) if self.turns else text


def split_slot(segment: str) -> tuple[str, Slot | None]:
    """Return the joining text and the slot name of a slot segment; (segment, None) for any other segment."""
    match = _SLOT.fullmatch(segment)
    return (match["joint"], match["slot"]) if match else (segment, None)  # type: ignore[return-value]


# The wording of the paper's Figure 2. In ModernBERT's tokenizer [MASK] includes the space on its left, so the masked
# word is the form with a space: " 0" and " 1" (ids 470 and 337), not "0" and "1".
FIGURE2 = Template(
    name="figure2",
    segments=(
        *("[CLS]", "{instruction}", " Question:", " {prompt}", " Choice 0:", " {response_a}", "[SEP]"),
        *(" Choice 1:", " {response_b}", " The better option is choice", "[MASK]", "[SEP]"),
    ),
    label_words=(" 0", " 1"),
)

# The wording that the paper's author trained with. The text ends in "Answer:" and two spaces, which are one token
# (50276 in ModernBERT), so the label after them has no space (ids 17 and 18).
ANSWER_COLON = Template(
    name="answer-colon",
    segments=(
        *("[CLS]", "{instruction}", "Question:", " {prompt}", " Choice 0:", " {response_a}", "[SEP]"),
        *(" Choice 1:", " {response_b}", "Answer:  ", "[MASK]", "[SEP]"),
    ),
    label_words=("0", "1"),
)

# How tokenizers join two texts: BERT's, DeBERTa's and ModernBERT's, then RoBERTa's, whose [CLS] is <s> and [SEP] </s>.
BERT_PAIR = Template(name="bert-pair", segments=("[CLS]", "{prompt}", "[SEP]", "{response}", "[SEP]"))
ROBERTA_PAIR = Template(name="roberta-pair", segments=("[CLS]", "{prompt}", "[SEP]", "[SEP]", "{response}", "[SEP]"))

# LLM-Blender's PairRM (arXiv 2306.02561): each text is a sequence of its own for the tokenizer. Of 2,048 tokens the
# prompt gets at most 1,224 and a response half of the rest, with the three special tokens of each.
PAIRRM = Template(
    name="pairrm",
    segments=(
        *("[CLS]", "<|source|>", "{prompt}", "[SEP]", "[CLS]", "<|candidate1|>", "{response_a}", "[SEP]"),
        *("[CLS]", "<|candidate2|>", "{response_b}", "[SEP]"),
    ),
    prompt_share=1221 / 2039,
)

# Chats, as reward models of TRL read them: the chat template of the policy, up to the end of the response.
CHATML = Template(
    name="chatml",
    segments=("{prompt}", "<|im_start|>assistant", "\n{response}", "<|im_end|>\n"),
    turns={role: Turn(before=f"<|im_start|>{role}", joint="\n", after="<|im_end|>\n") for role in ROLES},
)
LLAMA3 = Template(
    name="llama-3",
    segments=("[CLS]", "{prompt}", "<|start_header_id|>assistant<|end_header_id|>", "\n\n{response}", "<|eot_id|>"),
    turns={
        role: Turn(before=f"<|start_header_id|>{role}<|end_header_id|>", joint="\n\n", after="<|eot_id|>")
        for role in ROLES
    },
)
# The dialogues of HH-RLHF, which many older reward models were trained on as one text.
HUMAN_ASSISTANT = Template(
    name="human-assistant",
    segments=("[CLS]", "{prompt}", "\n\nAssistant:", " {response}", "[SEP]"),
    turns={
        "system": Turn(before="\n\nSystem:", joint=" "),
        "user": Turn(before="\n\nHuman:", joint=" "),
        "assistant": Turn(before="\n\nAssistant:", joint=" "),
    },
)

TEMPLATES = {
    template.name: template
    for template in (FIGURE2, ANSWER_COLON, BERT_PAIR, ROBERTA_PAIR, PAIRRM, CHATML, LLAMA3, HUMAN_ASSISTANT)
}
