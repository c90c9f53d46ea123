"""The cloze text around a comparison, as data.

A template is a list of segments. A segment is one of

* a special token by role: ``[CLS]``, ``[SEP]`` or ``[MASK]``;
* a slot, with the text that joins it to the previous segment: `` {prompt}``;
* fixed text.

Each segment is encoded separately and the ids are concatenated. The text is never built as one string, so user text
that contains ``[MASK]`` or ``Choice 1:`` remains plain text.

Why the joining space belongs to the slot: byte-level BPE has one token for " word" and another for "word". With the
space, the user's text begins as it would in running text; a fixed segment that ended in a space would leave a separate
space token there.
"""

import re
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tinyrm.chat import Message

Slot = Literal["instruction", "prompt", "response_a", "response_b"]
SPECIAL_ROLES = ("[CLS]", "[SEP]", "[MASK]")

_SLOT = re.compile(r"(?P<joint>[^{}]*)\{(?P<slot>instruction|prompt|response_a|response_b)\}")


class Template(BaseModel):
    """Segments in order, and the two label words at the mask (first choice, second choice)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    segments: tuple[str, ...]
    label_words: tuple[str, str]
    turn_names: dict[str, str] = Field(
        default={"system": "System", "user": "Human", "assistant": "Assistant"},
        description="Names of the speakers in the prompt text that chat messages become.",
    )

    @model_validator(mode="after")
    def _each_part_exactly_once(self) -> Self:
        if self.segments.count("[MASK]") != 1:
            raise ValueError("a template needs exactly one [MASK] segment")
        slots = sorted(slot for _, slot in map(split_slot, self.segments) if slot)
        if slots != ["instruction", "prompt", "response_a", "response_b"]:
            raise ValueError(f"a template needs each slot exactly once, got {slots}")
        # Swapping the order swaps ids, which include the joining text.
        if len({joint for joint, slot in map(split_slot, self.segments) if slot in ("response_a", "response_b")}) > 1:
            raise ValueError("both responses need the same joining text; put the rest into separate segments")
        return self

    def render_messages(self, messages: Sequence[Message]) -> str:
        """Return chat messages as one text; a single user message gets no speaker name, as in the training pairs."""
        if len(messages) == 1 and messages[0]["role"] == "user":
            return messages[0]["content"]
        return "\n\n".join(f"{self.turn_names[m['role']]}: {m['content']}" for m in messages)


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

TEMPLATES = {template.name: template for template in (FIGURE2, ANSWER_COLON)}
