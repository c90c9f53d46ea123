"""What is run: a batch of readings, each of a given number of tokens."""

import random
from dataclasses import dataclass
from typing import Any

MIXED = (64, 128, 192, 256, 384, 512, 768, 1024)
FIRST_ORDINARY = 300  # above the special tokens and the single bytes


@dataclass(frozen=True, slots=True)
class Special:
    """Ids that the model gives a meaning to, and how many ids the tokenizer has."""

    cls: int
    sep: int
    pad: int
    mask: int
    labels: tuple[int, int]
    vocab: int


@dataclass(frozen=True, slots=True)
class Shape:
    """lengths: tokens of each row; rows are padded on the right to the longest."""

    label: str
    lengths: tuple[int, ...]

    def request(self, special: Special) -> dict[str, Any]:
        """Ids and mask as lists, the same ones at every call: [CLS] ... [MASK] [SEP], padded."""
        rng = random.Random(f"{self.label} {self.lengths}")
        longest = max(self.lengths)
        rows, mask = [], []
        for length in self.lengths:
            text = [rng.randrange(FIRST_ORDINARY, special.vocab) for _ in range(length - 3)]
            padding = longest - length
            rows.append([special.cls, *text, special.mask, special.sep, *[special.pad] * padding])
            mask.append([1] * length + [0] * padding)
        return {"input_ids": rows, "attention_mask": mask}


def shapes_of(tokens: tuple[int, ...], *, mixed: bool) -> list[Shape]:
    """One reading at each length, short ones first; then a batch of several lengths."""
    shapes = [Shape(str(length), (length,)) for length in sorted(tokens)]
    return [*shapes, Shape(f"{len(MIXED)} mixed", MIXED)] if mixed else shapes
