"""One response per text, for the heads that score responses one by one."""

import re
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from tinyrm.comparison import Comparison
from tinyrm.encoding import MIN_TEXT_TOKENS, Encoder, Encoding, Truncation, fair_shares, plain_text_tokenizer
from tinyrm.errors import InstructionTooLong, InvalidTemplate
from tinyrm.template import SPECIAL_ROLES, Template, split_slot


class ResponseEncoder:
    """The pair encoder's wording up to the end of its first response, then [SEP]; the same budget for each text.

    marker_words: puts another [CLS] after every so many words of the response, as the paper's author did with 100 for
    token-level labels; 0 for none.

    Raises InvalidTemplate if the template has its responses before the prompt.
    """

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, marker_words: int = 0) -> None:
        self._encoder = encoder
        self._marker_words = marker_words
        self._parts = (*map(split_slot, segments_of_one_response(encoder.template)), ("[SEP]", None))
        plain = plain_text_tokenizer(tokenizer)
        self._fixed: dict[str, list[int]] = {
            text: [encoder.special.by_role(text)]
            if text in SPECIAL_ROLES
            else plain.encode(text, add_special_tokens=False).ids
            for text, slot in self._parts
            if slot is None
        }

    def encode(self, comparison: Comparison, instruction: str, *, swap: bool = False) -> tuple[Encoding, ...]:
        """Return the text of response A, and with `swap` that of response B. Raises InvalidText, InstructionTooLong."""
        responses = (comparison.response_a, comparison.response_b) if swap else (comparison.response_a,)
        return tuple(self._encode_one(instruction, comparison.prompt, response) for response in responses)

    def _encode_one(self, instruction: str, prompt: str, response: str) -> Encoding:
        texts = self._encoder.tokenize(instruction, prompt, split_words(response, self._marker_words))
        first, *others = texts.responses
        marked = [*first, *chain.from_iterable([self._encoder.special.cls, *chunk] for chunk in others)]
        used = sum(len(self._fixed[text]) for text, slot in self._parts if slot is None) + len(texts.instruction)
        room = self._encoder.max_tokens - used
        if room < MIN_TEXT_TOKENS:
            raise InstructionTooLong(
                f"the instruction takes {len(texts.instruction)} of {self._encoder.max_tokens} tokens and is never "
                "truncated; shorten it"
            )
        keep_prompt, keep_response, _ = fair_shares(len(texts.prompt), len(marked), 0, room)
        unread_prompt, *unread = texts.unread
        dropped = Truncation(
            len(texts.prompt) - keep_prompt + unread_prompt, len(marked) - keep_response + sum(unread), 0
        )
        slots = {
            "instruction": texts.instruction,
            "prompt": texts.prompt[len(texts.prompt) - keep_prompt :],
            "response_a": marked[:keep_response],
        }
        ids = chain.from_iterable(slots[slot] if slot else self._fixed[text] for text, slot in self._parts)
        return Encoding(np.fromiter(ids, dtype=np.int64), dropped)


def split_words(text: str, words: int) -> list[str]:
    """Split `text` after every `words` words, 0 for no split; one space at each seam is dropped."""
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    cuts = ends[words - 1 : -1 : words] if words else []
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [chunks[0], *(chunk.removeprefix(" ") for chunk in chunks[1:])]


def segments_of_one_response(template: Template) -> tuple[str, ...]:
    """Return the template's segments up to its first response. Raises InvalidTemplate if others come before it."""
    slots = [split_slot(segment)[1] for segment in template.segments]
    before = slots[: slots.index("response_a") + 1]
    if not {"instruction", "prompt"} <= set(before) or "response_b" in before:
        raise InvalidTemplate(
            f"template {template.name!r} lacks instruction or prompt before its first response, so it cannot show one "
            "response alone; use figure2 or answer-colon"
        )
    return template.segments[: len(before)]
