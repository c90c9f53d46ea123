"""Pairs that made-up responses are taken from: answers to other prompts, and worse ones to the same prompt."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Final

from numpy.random import Generator

from tinyrm.pairs import PreferencePair

# Responses to look at before one is chosen by its length.
CANDIDATES: Final = 24
# Two prompts that share more of their words are too close for one's response to be off the other's topic.
MAX_SHARED: Final = 0.2


class Pool:
    """Pairs by domain and by prompt.

    pairs: all of them may be used; for training, only those that learn.
    """

    def __init__(self, pairs: Sequence[PreferencePair]) -> None:
        self.pairs = tuple(pairs)
        self._places: dict[str | None, list[int]] = defaultdict(list)
        self._worse: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for place, pair in enumerate(pairs):
            self._places[pair.domain].append(place)
            if not pair.is_tie:
                self._worse[pair.prompt][pair.chosen].add(pair.rejected)
        self._others: dict[str | None, list[int]] = {}
        self._words: dict[int, frozenset[str]] = {}

    def off_topic(self, pair: PreferencePair, length: int, rng: Generator, suits: Callable[[str], bool]) -> str | None:
        """Return the better response to a prompt that is far from the pair's; None if no such prompt is found.

        It is of the pair's domain or of another one, with equal chance where both exist.

        length: characters; among the responses found, the one of the nearest length is taken.
        suits: whether a response may be taken.
        """
        same = self._places.get(pair.domain, [])
        other = self._elsewhere(pair.domain)
        places = same if not other or (same and rng.random() < 0.5) else other
        drawn = [places[i] for i in rng.integers(len(places), size=CANDIDATES)] if places else []
        own = content_words(pair.prompt)
        found = [
            text
            for place in drawn
            if (text := self.pairs[place].chosen) not in (pair.chosen, pair.rejected)
            and suits(text)
            and shared(own, self._words_at(place)) <= MAX_SHARED
        ]
        return min(found, key=lambda text: abs(log((len(text) + 1) / (length + 1))), default=None)

    def _elsewhere(self, domain: str | None) -> list[int]:
        """Return the places of pairs of other domains, which are found once."""
        if domain not in self._others:
            self._others[domain] = [place for name, own in self._places.items() if name != domain for place in own]
        return self._others[domain]

    def _words_at(self, place: int) -> frozenset[str]:
        """Return the content words of a prompt, which are found once."""
        if place not in self._words:
            self._words[place] = content_words(self.pairs[place].prompt)
        return self._words[place]

    def worse(self, pair: PreferencePair) -> list[str]:
        """Return other responses to the pair's prompt that are worse than its chosen one, without the rejected one.

        Empty if pairs contradict each other: then the chosen response is worse than itself.
        """
        below = reachable(self._worse.get(pair.prompt, {}), pair.chosen)
        return [] if pair.chosen in below else sorted(below - {pair.rejected})


def reachable(edges: Mapping[str, set[str]], start: str) -> set[str]:
    """Return all nodes that a path leads to from `start`."""
    seen: set[str] = set()
    left = [start]
    while left:
        new = edges.get(left.pop(), set()) - seen
        seen |= new
        left += new
    return seen


def content_words(text: str) -> frozenset[str]:
    """Return the longer words of a text, which carry its topic."""
    return frozenset(re.findall(r"\w{4,}", text.lower()))


def shared(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of two sets that is common to both (Jaccard); 0 for two empty ones."""
    return len(one & other) / max(len(one | other), 1)
