"""Texts of users -> token ids: never a special token, and no more of a long text than could be kept."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from tinyrm.errors import InvalidTemplate, InvalidText
from tinyrm.truncation import Kept

# Characters that are tokenized of one text, for each token that fits into a sequence. What lies beyond could not be
# kept, and would only cost time and memory. The second bound is for a text that has too few tokens within the first
# one, such as one of blanks.
READ_CHARACTERS, MAX_READ_CHARACTERS = 16, 128
# Texts are tokenized together up to this size: together they need fewer calls, but memory for all of them at once.
CALL_CHARACTERS = 65_536


def plain_text_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that neither pads nor truncates, and that encodes text like `[MASK]` as plain text.

    A copy, because these switches must not change the caller's tokenizer.
    """
    own = Tokenizer.from_str(tokenizer.to_str())
    own.encode_special_tokens = True
    own.no_padding()
    own.no_truncation()
    return own


class PlainText:
    """Tokenizes texts of users for sequences of `max_tokens`."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.tokenizer = plain_text_tokenizer(tokenizer)
        self.max_tokens = max_tokens
        self.added = self.tokenizer.get_added_tokens_decoder()
        self._special_texts = tuple(token.content for token in self.added.values() if token.special)
        # A Unigram vocabulary spells special tokens too. Plain text with their ids gets those of the token's two parts.
        self._spelled: dict[int, list[int]] = {}

    def reserve(self, special_id: int, role: str) -> None:
        """Let no text have this id. Raises InvalidTemplate if one could."""
        token = self.tokenizer.id_to_token(special_id)
        if token is None or special_id in self.ids(f"x {token} {token}x"):
            parts = self.ids(token[:1]) + self.ids(token[1:]) if token in self._special_texts else [special_id]
            if token is None or special_id in parts:
                raise InvalidTemplate(f"user text could forge {role}, the token {token!r}: it is not marked as special")
            self._spelled[special_id] = parts

    def ids(self, text: str) -> list[int]:
        """Return the ids of a whole text. Raises InvalidText."""
        return self.encode([text])[0]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of whole texts. Raises InvalidText."""
        is_small = sum(map(len, texts)) <= CALL_CHARACTERS
        try:
            # Unlike `encode`, this call releases the interpreter lock, and it does not track offsets.
            return [
                self._without_special(encoded.ids)
                for part in ([texts] if is_small else [[text] for text in texts])
                for encoded in self.tokenizer.encode_batch_fast(part, add_special_tokens=False)
            ]
        except (TypeError, UnicodeEncodeError) as error:  # which one depends on the tokenizer's version
            raise InvalidText("a text contains a lone surrogate, which is not valid Unicode; remove it") from error

    def _without_special(self, ids: list[int]) -> list[int]:
        """Return the ids of a text with those of special tokens replaced, which its normalizer may have spelled."""
        if self._spelled.keys().isdisjoint(ids):
            return ids
        return [plain for i in ids for plain in self._spelled.get(i, (i,))]

    def read(self, texts: Sequence[str], kept: Sequence[Kept]) -> tuple[list[list[int]], list[int]]:
        """Return the ids of texts as far as they could be kept, and 1 for each of which they leave out some.

        kept: what is kept of each text if it is too long.
        """
        parts = [self.readable(text, which) for text, which in zip(texts, kept, strict=True)]
        tokenized = iter(self.encode([part for of_text in parts for part in of_text]))
        ids = [[next(tokenized) for _ in of_text] for of_text in parts]
        for at, (text, which) in enumerate(zip(texts, kept, strict=True)):
            if sum(map(len, parts[at])) < len(text) and min(map(len, ids[at])) < self.max_tokens:
                parts[at] = self.readable(text, which, MAX_READ_CHARACTERS)
                ids[at] = self.encode(parts[at])
        unread = [int(sum(map(len, of_text)) < len(text)) for of_text, text in zip(parts, texts, strict=True)]
        return [[i for part in of_text for i in part] for of_text in ids], unread

    def readable(self, text: str, kept: Kept, characters_per_token: int | None = None) -> list[str]:
        """Return the part of a text that is read; two parts of a text too long of which both ends are kept.

        It is cut at a blank if there is one, because tokenizers split there as well: its tokens are those of the whole.

        characters_per_token: None for READ_CHARACTERS.
        """
        limit = (characters_per_token or READ_CHARACTERS) * self.max_tokens
        if len(text) <= limit:
            return [text]
        if kept == "ends":
            return [_start_of(text, limit // 2), _end_of(text, limit // 2)]
        return [_end_of(text, limit) if kept == "end" else _start_of(text, limit)]

    def count_characters(self, text: str) -> int:
        """Return the characters of a text that are tokenized at first."""
        return min(len(text), READ_CHARACTERS * self.max_tokens)

    def holds_special(self, text: str, kept: Kept) -> bool:
        """Return whether the part of a text that is read at first contains a special token, encoded as plain text."""
        return any(token in part for part in self.readable(text, kept) for token in self._special_texts)


def _start_of(text: str, limit: int) -> str:
    end = text.rfind(" ", limit // 2, limit)
    return text[: end if end > 0 else limit]


def _end_of(text: str, limit: int) -> str:
    start = len(text) - limit
    return text[max(start, text.find(" ", start, start + limit // 2)) :]
