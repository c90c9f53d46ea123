"""One response per text, for the heads that score responses one by one."""

import re
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from tinyrm.comparison import Comparison
from tinyrm.encoding import MIN_TEXT_TOKENS, Encoder, Encoding, Truncation, fair_shares, plain_text_tokenizer
from tinyrm.errors import InstructionTooLong, InvalidTemplate
from tinyrm.template import SPECIAL_ROLES, split_slot


class ResponseEncoder:
    """The pair encoder's wording up to the end of its first response, then [SEP]; the same budget for each text.

    `marker_words` puts another [CLS] after every so many words of the response, as the paper's author did with 100 for
    token-level labels. 0: none. Raises InvalidTemplate where the template has its responses before the prompt.
    """

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, marker_words: int = 0) -> None:
        self._encoder = encoder
        self._marker_words = marker_words
        self._parts = (*map(split_slot, _up_to_first_response(encoder)), ("[SEP]", None))
        plain = plain_text_tokenizer(tokenizer)
        self._fixed = {text: _fixed_ids(text, encoder, plain) for text, slot in self._parts if slot is None}

    def encode(self, comparison: Comparison, instruction: str, *, swap: bool = False) -> tuple[Encoding, ...]:
        """Response A's text, and with `swap` response B's. Raises InvalidText, InstructionTooLong."""
        responses = (comparison.response_a, comparison.response_b) if swap else (comparison.response_a,)
        return tuple(self._one(instruction, comparison.prompt, response) for response in responses)

    def _one(self, instruction: str, prompt: str, response: str) -> Encoding:
        texts = self._encoder.tokenize(instruction, prompt, split_words(response, self._marker_words))
        answer = self._marked(texts.responses)
        room = self._room(texts.instruction)
        keep_prompt, keep_answer, _ = fair_shares(len(texts.prompt), len(answer), 0, room)
        cut = Truncation(len(texts.prompt) - keep_prompt, len(answer) - keep_answer, 0)
        slots = {
            "instruction": texts.instruction,
            "prompt": texts.prompt[cut.prompt :],
            "response_a": answer[:keep_answer],
        }
        ids = chain.from_iterable(slots[slot] if slot else self._fixed[text] for text, slot in self._parts)
        return Encoding(np.fromiter(ids, dtype=np.int64), cut)

    def _marked(self, chunks: list[list[int]]) -> list[int]:
        marker = [self._encoder.special.cls]
        return [*chunks[0], *chain.from_iterable(marker + chunk for chunk in chunks[1:])]

    def _room(self, instruction: list[int]) -> int:
        used = sum(len(self._fixed[text]) for text, slot in self._parts if slot is None) + len(instruction)
        room = self._encoder.max_tokens - used
        if room < MIN_TEXT_TOKENS:
            raise InstructionTooLong(
                f"the instruction takes {len(instruction)} of {self._encoder.max_tokens} tokens and is never cut; "
                "shorten it"
            )
        return room


def split_words(text: str, words: int) -> list[str]:
    """`text` after every `words` words; one space at a seam is left to whoever joins. 0: whole."""
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    cuts = ends[words - 1 : -1 : words] if words else []
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [chunks[0], *(chunk.removeprefix(" ") for chunk in chunks[1:])]


def _up_to_first_response(encoder: Encoder) -> tuple[str, ...]:
    template = encoder.template
    slots = [split_slot(segment)[1] for segment in template.segments]
    before = slots[: slots.index("response_a") + 1]
    if not {"instruction", "prompt"} <= set(before) or "response_b" in before:
        raise InvalidTemplate(
            f"template {template.name!r} lacks instruction or prompt before its first response, so one response alone "
            "cannot be shown in it; use figure2 or answer-colon"
        )
    return template.segments[: len(before)]


def _fixed_ids(text: str, encoder: Encoder, tokenizer: Tokenizer) -> list[int]:
    if text in SPECIAL_ROLES:
        return [encoder.special.by_role(text)]
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
