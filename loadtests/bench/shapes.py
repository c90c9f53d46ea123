"""What is measured: geometries, and batches of sequences with given numbers of tokens."""

import itertools
import random
from dataclasses import dataclass
from typing import Any

from tinyrm.flops import Geometry

MIXED = (64, 128, 192, 256, 384, 512, 768, 1024)
FIRST_ORDINARY = 300  # above the special tokens and the letters
FIRST_WORD = 999  # in BERT's vocabulary, after special tokens, unused ones and letters


def modernbert(*, vocab: int, hidden: int, intermediate: int, layers: int, heads: int) -> Geometry:
    """Return a geometry with ModernBERT's window and every third layer global."""
    return Geometry(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        window=128,
        global_layers=tuple(range(0, layers, 3)),
        vocab=vocab,
    )


GEOMETRIES = {
    "small": modernbert(vocab=16384, hidden=256, intermediate=384, layers=7, heads=4),
    "base": modernbert(vocab=50368, hidden=768, intermediate=1152, layers=22, heads=12),
    "large": modernbert(vocab=50368, hidden=1024, intermediate=2624, layers=28, heads=16),
}
# Lengths that are measured by default.
TOKENS = {
    "small": (64, 256, 512, 1024, 2048),
    "base": (64, 256, 512, 1024, 2048, 4096),
    "large": (64, 256, 512, 1024, 2048, 4096),
}


def products(geometry: Geometry, tokens: int) -> list[tuple[int, int, int]]:
    """Return two matrix products (rows, inner, columns) whose rates bound the rate of a layer of this length."""
    h, i = geometry.hidden, geometry.intermediate
    return [(tokens, h, 3 * h), (tokens, i, h)]


@dataclass(frozen=True, slots=True)
class Special:
    """The ids of special tokens and label words, and the size of the vocabulary."""

    cls: int
    sep: int
    pad: int
    mask: int
    labels: tuple[int, int]
    vocab: int

    @classmethod
    def of(cls, vocab: int) -> "Special":
        """Return the ids in the vocabulary of `wordpieces`."""
        ids = wordpieces(vocab)
        return cls(ids["[CLS]"], ids["[SEP]"], ids["[PAD]"], ids["[MASK]"], (ids["0"], ids["1"]), vocab)


def wordpieces(size: int) -> dict[str, int]:
    """Return a vocabulary with BERT's special tokens at their places: unused ones, letters, words of syllables."""
    tokens = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    tokens += [*letters, *(f"##{letter}" for letter in letters)]
    tokens += [f"[unused{n}]" for n in range(99, 99 + FIRST_WORD - len(tokens))]
    syllables = ["".join(letters) for letters in itertools.product("bdfgklmnprstvz", "aeiou")]
    words = ("".join(word) for count in (2, 3) for word in itertools.product(syllables, repeat=count))
    tokens += itertools.islice(words, size - len(tokens))
    return {token: number for number, token in enumerate(tokens)}


@dataclass(frozen=True, slots=True)
class Shape:
    """lengths: tokens of each row; rows are padded on the right to the longest."""

    label: str
    lengths: tuple[int, ...]

    def request(self, special: Special) -> dict[str, Any]:
        """Return ids and mask as lists, the same in every call: [CLS] ... [MASK] [SEP], padded."""
        rng = random.Random(f"{self.label} {self.lengths}")
        longest = max(self.lengths)
        rows, mask = [], []
        for length in self.lengths:
            text = [rng.randrange(FIRST_ORDINARY, special.vocab) for _ in range(length - 3)]
            padding = longest - length
            rows.append([special.cls, *text, special.mask, special.sep, *[special.pad] * padding])
            mask.append([1] * length + [0] * padding)
        return {"input_ids": rows, "attention_mask": mask}


def shapes(tokens: tuple[int, ...], *, mixed: bool) -> list[Shape]:
    """Return one sequence of each length, short ones first, and with `mixed` a batch of several lengths."""
    single = [Shape(str(length), (length,)) for length in sorted(tokens)]
    return [*single, Shape(f"{len(MIXED)} mixed", MIXED)] if mixed else single
