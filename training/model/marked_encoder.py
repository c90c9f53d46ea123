"""One response in each text, with a marker after every so many words, for labels at tokens."""

import re
from dataclasses import dataclass, replace
from itertools import chain

from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoder, Encoding


@dataclass(frozen=True, slots=True)
class MarkedEncoder:
    """Puts another [CLS] after every so many words of the response, as the paper's author did with 100.

    encoder: reads responses.
    """

    encoder: Encoder
    marker_words: int

    def encode(self, comparison: Comparison, instruction: str, *, swap: bool = False) -> tuple[Encoding, ...]:
        """Return the text of response A, and with `swap` that of response B. Raises InvalidText, InstructionTooLong."""
        responses = (comparison.response_a, comparison.response_b) if swap else (comparison.response_a,)
        return tuple(self._encode_one(instruction, comparison.prompt, response) for response in responses)

    def _encode_one(self, instruction: str, prompt: str, response: str) -> Encoding:
        texts = self.encoder.tokenize(instruction, prompt, split_words(response, self.marker_words))
        first, *others = texts.responses
        marked = [*first, *chain.from_iterable([self.encoder.special.cls, *chunk] for chunk in others)]
        unread_prompt, *unread = texts.unread
        return self.encoder.assemble_one(replace(texts, responses=[marked], unread=[unread_prompt, sum(unread)]), 0)


def split_words(text: str, words: int) -> list[str]:
    """Split `text` after every `words` words, 0 for no split; one space at each seam is dropped."""
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    cuts = ends[words - 1 : -1 : words] if words else []
    chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [chunks[0], *(chunk.removeprefix(" ") for chunk in chunks[1:])]
