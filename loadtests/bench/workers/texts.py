"""Texts of an exact number of tokens, for contenders that take text and not ids."""

import random
import re
from typing import Any

WORD = re.compile("\u0120[a-z]{3,}")  # the byte-level alphabet's sign for a space, then a word


class Texts:
    """Makes texts for a tokenizer of transformers, from words that are one token each."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words = sorted(token[1:] for token in tokenizer.get_vocab() if WORD.fullmatch(token))
        self._random = random.Random(17)

    def of(self, tokens: int) -> str:
        """A text that the tokenizer turns into exactly `tokens` tokens, special ones included."""
        added = tokens - self._tokenizer.num_special_tokens_to_add(pair=False)
        text = "".join(" " + word for word in self._random.choices(self._words, k=added))
        self._check(tokens, text)
        return text

    def pair_of(self, tokens: int) -> tuple[str, str]:
        """Two texts that together make exactly `tokens` tokens."""
        added = tokens - self._tokenizer.num_special_tokens_to_add(pair=True)
        words = [" " + word for word in self._random.choices(self._words, k=added)]
        pair = "".join(words[: added // 2]), "".join(words[added // 2 :])
        self._check(tokens, *pair)
        return pair

    def _check(self, tokens: int, *texts: str) -> None:
        made = len(self._tokenizer(*texts)["input_ids"])
        if made != tokens:
            raise ValueError(f"a text of {tokens} tokens was asked for, this tokenizer makes {made} of it")
