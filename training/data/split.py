"""Which texts are held out of training, and how many pairs of each domain are learned from."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Mapping
from itertools import compress

from tinyrm.pairs import PreferencePair
from tinyrm.template import FIGURE2
from training.data.cleaning import normalise
from training.data.conversations import Conversation


def split_by_prompt(
    pairs: list[PreferencePair], fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return (learn from, held out). All pairs of one prompt are on the same side, in any order of the file.

    So are all dialogues with the same opening, because a later turn repeats the earlier ones. Each opening is drawn by
    its own digest with probability `fraction`, so one seed holds out the same ones in any mixture. A
    subset (or a domain, if there are no subsets) without any held-out opening gives the one with the smallest digest,
    so that small sources are measured too.
    """
    subsets: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        subsets[pair.subset or pair.domain or ""].add(opening(pair.prompt))
    held_out: set[str] = set()
    for names in subsets.values():
        drawn = {name for name in names if draw(seed, name) < fraction}
        if not drawn and fraction and len(names) > 1:
            drawn = {min(names, key=lambda name: draw(seed, name))}
        held_out |= drawn
    # A prompt that differs from a held-out one by blanks at line ends is the same question.
    questions = {normalise(name) for name in held_out}
    sides = [normalise(opening(pair.prompt)) in questions for pair in pairs]
    return list(compress(pairs, [not side for side in sides])), list(compress(pairs, sides))


def split_by_opening(
    conversations: list[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Return (learn from, held out). Conversations with the same opening, such as branches of a tree, stay together."""
    sides = [draw(seed, conversation.messages[0]["content"]) < fraction for conversation in conversations]
    return list(compress(conversations, [not side for side in sides])), list(compress(conversations, sides))


def opening(prompt: str) -> str:
    """Return the first message of a rendered dialogue; any other prompt is its own opening."""
    names = FIGURE2.turn_names
    return prompt.partition(f"\n\n{names['assistant']}: ")[0].removeprefix(f"{names['user']}: ")


def draw(seed: int, text: str) -> float:
    """Return a number in [0, 1) that depends on seed and text only."""
    digest = hashlib.sha256(f"{seed}:{text}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def balanced_counts(counts: Mapping[str, int], exponent: float) -> dict[str, int]:
    """Return how many pairs to take of each domain: proportional to count^exponent, without repeating any."""
    smallest = min(counts.values())
    return {domain: round(smallest * (count / smallest) ** exponent) for domain, count in counts.items()}


def balanced(pairs: list[PreferencePair], exponent: float, seed: int) -> list[PreferencePair]:
    """Return a random part of the pairs with `balanced_counts` of each domain, in their order."""
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
