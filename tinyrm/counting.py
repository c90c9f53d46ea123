"""The operations of a sequence, whatever it holds."""

from collections.abc import Callable
from functools import lru_cache

from tinyrm.encoding import Encoding, SpecialTokens
from tinyrm.flops import Geometry, exact_flops, set_flops
from tinyrm.manifest import Head

# Of sequences with other lengths, the oldest are counted again.
KEPT = 16_384


def flop_counter(geometry: Geometry, head: Head, special: SpecialTokens) -> Callable[[Encoding], int]:
    """Return a function that counts what the logits of a sequence need; see `tinyrm.flops`.

    Counts are kept by the lengths: each is a sum over all layers, and lengths repeat.
    """
    of_tokens = lru_cache(KEPT)(lambda tokens: exact_flops(geometry, tokens))
    reading = head.sets
    if reading is None:
        return lambda sequence: of_tokens(len(sequence))
    n_global = len(geometry.global_layers)
    crossing = 0 if reading.scores_alone else min(reading.layers or n_global, n_global)
    of_parts = lru_cache(KEPT)(
        lambda prompt, *responses: set_flops(
            geometry, prompt, responses, others=reading.others, crossing_layers=crossing
        )
    )
    return lambda sequence: of_parts(*special.part_lengths(sequence.input_ids))
