"""Which tokens of a text that is too long are kept, and how many.

What a text keeps has no separator where its middle is left out: a token there would cost room, and models that were
trained without one read text in which it never occurred.
"""

import math
from typing import Literal

# What is kept of a text. Of responses a domain keeps the start, or both ends; prompts keep their end, because the
# question comes last.
Kept = Literal["start", "end", "ends"]
KeptOfResponse = Literal["start", "ends"]
# The part of `ends` that is the start.
HEAD_SHARE = 1 / 2


class Instruction(str):
    """The instruction of a domain that keeps other tokens of a long response than its start.

    A plain text stands for one that keeps the start, so an instruction says all that an encoder needs of a domain.
    """

    kept: KeptOfResponse = "start"

    def __eq__(self, other: object) -> bool:
        """Differ from the same text where other tokens of a response are kept: the model reads something else."""
        return isinstance(other, str) and str(self) == str(other) and self.kept == kept_under(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(str(self))

    @classmethod
    def of(cls, text: str, kept: KeptOfResponse) -> str:
        """Return the text as an instruction under which this is kept of a response."""
        if kept == "start":
            return str(text)
        instruction = cls(text)
        instruction.kept = kept
        return instruction


def kept_under(instruction: str) -> KeptOfResponse:
    """Return what is kept of a response under an instruction."""
    return instruction.kept if isinstance(instruction, Instruction) else "start"


def keep(ids: list[int], count: int, kept: Kept) -> list[int]:
    """Return `count` of the ids, in their order; all if there are no more.

    ends: HEAD_SHARE of them from the start, rounded up, and the others from the end (arXiv 1905.05583, section 5.3.1).
    """
    if count >= len(ids):
        return ids
    head = {"start": count, "end": 0, "ends": math.ceil(HEAD_SHARE * count)}[kept]
    return ids[:head] + ids[len(ids) - (count - head) :]


def fair_shares(prompt: int, a: int, b: int, room: int) -> tuple[int, int, int]:
    """Return how many tokens of prompt, a and b to keep: max-min fair, and the same for each response in both orders.

    All texts are truncated to one length, the largest that fits; a shorter text stays whole and leaves its share to the
    others. Tokens that cannot be shared equally go to the prompt, so that neither response is favoured.
    """
    if prompt + a + b <= room:
        return prompt, a, b
    shortest, middle, _ = sorted((prompt, a, b))
    # The largest length if none, one or two of the texts are shorter than it.
    longest_kept = max(room // 3, (room - shortest) // 2, room - shortest - middle)
    keep_a, keep_b = min(a, longest_kept), min(b, longest_kept)
    return min(prompt, room - keep_a - keep_b), keep_a, keep_b
