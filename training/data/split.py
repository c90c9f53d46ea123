"""Which pairs are held out of training, and how many of each domain are learned from."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Mapping
from itertools import compress

from tinyrm.pairs import PreferencePair
from tinyrm.template import FIGURE2


def split_by_prompt(
    pairs: list[PreferencePair], fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(learn from, held out). All pairs of one prompt fall on the same side, whatever the order of the file.

    So do all dialogues with the same opening: a later turn of one repeats the earlier. Each opening is drawn by its own
    digest with probability `fraction`, so that one seed holds out the same ones whatever else is learnt from. A subset
    (a domain, where there are no subsets) that would have none gives the one of the smallest digest, so that small
    sources are heard.
    """
    subsets: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        subsets[pair.subset or pair.domain or ""].add(opening(pair.prompt))
    held_out: set[str] = set()
    for names in subsets.values():
        drawn = {name for name in names if draw(seed, name) < fraction}
        held_out |= drawn or ({min(names, key=lambda name: draw(seed, name))} if fraction and len(names) > 1 else set())
    sides = [opening(pair.prompt) in held_out for pair in pairs]
    return list(compress(pairs, [not side for side in sides])), list(compress(pairs, sides))


def opening(prompt: str) -> str:
    """The first message of a rendered dialogue; any other prompt is its own opening."""
    names = FIGURE2.turn_names
    return prompt.partition(f"\n\n{names['assistant']}: ")[0].removeprefix(f"{names['user']}: ")


def draw(seed: int, prompt: str) -> float:
    """In [0, 1), from the texts alone."""
    digest = hashlib.sha256(f"{seed}:{prompt}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def balanced_counts(counts: Mapping[str, int], exponent: float) -> dict[str, int]:
    """Pairs to take of each domain: proportional to count^exponent, as many as can be had without repeating any."""
    smallest = min(counts.values())
    return {domain: round(smallest * (count / smallest) ** exponent) for domain, count in counts.items()}


def balanced(pairs: list[PreferencePair], exponent: float, seed: int) -> list[PreferencePair]:
    """A random part of the pairs with `balanced_counts` of each domain, in the order they came."""
    if exponent == 1 or not pairs:
        return pairs
    places: dict[str, list[int]] = defaultdict(list)
    for place, pair in enumerate(pairs):
        places[pair.domain or ""].append(place)
    take = balanced_counts({domain: len(p) for domain, p in places.items()}, exponent)
    kept = [
        i for domain, p in sorted(places.items()) for i in random.Random(f"{seed}:{domain}").sample(p, take[domain])
    ]
    return [pairs[i] for i in sorted(kept)]
