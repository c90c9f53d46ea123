"""Pairs of a good response and a made-up bad one, shown in training beside those of the data."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tinyrm.errors import InvalidInput
from tinyrm.negatives import Kind, MadePair, Pool, draw
from tinyrm.pairs import PreferencePair


def made_pairs(pool: Pool, number: int, weights: Mapping[Kind, float], seed: int) -> list[MadePair]:
    """Return `number` of the pool's pairs, drawn at random, with made-up responses in place of the rejected ones.

    No pair is drawn twice before all are drawn once, and then it gets another kind or another text. Responses that are
    off-topic come from these pairs only, and wordings from the half that evaluation does not use. A tie is left out:
    neither of its responses is known to be good.

    Raises InvalidInput if no kind with a weight applies to any pair.
    """
    pairs, turn, made = [pair for pair in pool.pairs if not pair.is_tie], 0, list[MadePair]()
    while len(made) < number:
        for place in np.random.default_rng([seed, turn]).permutation(len(pairs)):
            if len(made) < number and (pair := draw(pairs[place], weights, pool, seed + turn)):
                made.append(pair)
        if not made:
            raise InvalidInput(f"negatives: none of the kinds {', '.join(weights)} applies to any of the pairs")
        turn += 1
    return made


def kinds_of(pairs: Sequence[PreferencePair]) -> dict[str, int]:
    """Return how many pairs have a made-up response of each kind."""
    return dict(Counter(pair.kind for pair in pairs if isinstance(pair, MadePair)).most_common())
