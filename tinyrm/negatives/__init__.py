"""Made-up bad responses: what training adds to its pairs, and what the sanity suite tests a model with."""

from tinyrm.negatives.kinds import (
    HARD,
    KINDS,
    SAME_PROMPT,
    WEIGHTS,
    Kind,
    MadePair,
    Negative,
    draw,
    made_pair,
    make,
    negatives_for,
)
from tinyrm.negatives.pool import Pool

__all__ = [
    "HARD",
    "KINDS",
    "SAME_PROMPT",
    "WEIGHTS",
    "Kind",
    "MadePair",
    "Negative",
    "Pool",
    "draw",
    "made_pair",
    "make",
    "negatives_for",
]
