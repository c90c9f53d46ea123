"""Texts of an exact number of tokens: one prompt, and responses that make sequences of given lengths with it."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

PROMPT_WORDS = 16
MIN_LETTERS = 3
MIXED_ROWS, SHORTEST, LONGEST = 64, 64, 1024
MIXED = f"{MIXED_ROWS} mixed"


def mixed_lengths() -> list[int]:
    """Return 64 lengths from 64 to 1,024 tokens, evenly spaced on a logarithmic scale, in random order."""
    lengths = [round(length) for length in np.geomspace(SHORTEST, LONGEST, MIXED_ROWS)]
    random.Random(17).shuffle(lengths)
    return lengths


class Texts:
    """Makes requests of a prompt and responses from words that are one token each.

    tokenizer: encodes a pair as a cross-encoder reads it, with its special tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        words = sorted({token.removeprefix("\u0120") for token in tokenizer.get_vocab()})
        words = [word for word in words if len(word) >= MIN_LETTERS and word.isascii() and word.isalpha()]
        # Alone and after a space: the latter is another token in a byte-level vocabulary.
        pairs = tokenizer.encode_batch([f"{word} {word}" for word in words], add_special_tokens=False)
        self._words = [word for word, pair in zip(words, pairs, strict=True) if len(pair) == 2]

    def request(self, label: str, lengths: Sequence[int], prompt_words: int = PROMPT_WORDS) -> dict[str, Any]:
        """Return a prompt and one response for each length; prompt and response together have so many tokens.

        prompt_words: tokens of the prompt alone.

        Raises ValueError if the tokenizer counts otherwise.
        """
        dice = random.Random(label)
        fixed = prompt_words + self._tokenizer.num_special_tokens_to_add(is_pair=True)
        prompt = " ".join(dice.choices(self._words, k=prompt_words))
        responses = [" ".join(dice.choices(self._words, k=length - fixed)) for length in lengths]
        found = [len(encoding) for encoding in self._tokenizer.encode_batch([(prompt, text) for text in responses])]
        if found != list(lengths):
            raise ValueError(f"the tokenizer made {found} tokens of texts for {list(lengths)}")
        return {"prompt": prompt, "responses": responses}
