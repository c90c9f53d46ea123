"""Comparisons to send: the validation split, or synthetic texts if it is absent."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.wire import request
from tinyrm.pairs import read_pairs

COMPARE, BATCH = "/v1/compare", "/v1/compare/batch"
VALIDATION = Path("data/validation.jsonl.gz")
SYNTHETIC = 512
WORDS = ("the", "of", "river", "seven", "light", "answer", "small", "under", "green", "walk", "stone", "paper")


@dataclass(frozen=True, slots=True)
class Payloads:
    """comparisons: bodies of /v1/compare.
    origin: where they are from, for the report.
    """

    comparisons: list[dict[str, Any]]
    origin: str

    def singles(self, headers: dict[str, str] | None = None) -> list[bytes]:
        return [request(COMPARE, json.dumps(c).encode(), headers=headers) for c in self.comparisons]

    def batches(self, items: int) -> list[bytes]:
        """Return the same comparisons in calls of `items` each, without the incomplete last call."""
        chunks = [self.comparisons[at : at + items] for at in range(0, len(self.comparisons) - items + 1, items)]
        return [batch_request(chunk) for chunk in chunks]


def batch_request(comparisons: Sequence[dict[str, Any]]) -> bytes:
    return request(BATCH, json.dumps({"items": list(comparisons)}).encode())


def read_payloads(path: Path = VALIDATION) -> Payloads:
    """Return comparisons in random order, so that a short run sees what a long one does.

    The chosen response is A in half of them.
    """
    dice = random.Random(17)
    if not path.is_file():
        return Payloads(synthetic(SYNTHETIC), f"{SYNTHETIC} synthetic comparisons ({path} is absent)")
    comparisons = []
    for pair in read_pairs(path):
        a, b = (pair.chosen, pair.rejected) if dice.random() < 0.5 else (pair.rejected, pair.chosen)
        comparisons.append({"prompt": pair.prompt, "response_a": a, "response_b": b})
    dice.shuffle(comparisons)
    return Payloads(comparisons, f"{len(comparisons)} pairs of {path}")


def synthetic(count: int) -> list[dict[str, Any]]:
    """Return prompts of 5 to 60 words with responses of 10 to 120."""
    dice = random.Random(17)

    def text(low: int, high: int) -> str:
        return " ".join(dice.choices(WORDS, k=dice.randint(low, high)))

    return [{"prompt": text(5, 60), "response_a": text(10, 120), "response_b": text(10, 120)} for _ in range(count)]
