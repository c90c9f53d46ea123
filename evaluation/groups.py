"""Groups of responses of which one is known to be best: from labelled pairs, and simulated."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyrm.errors import InvalidInput
from tinyrm.negatives.pool import reachable
from tinyrm.pairs import PreferencePair
from tinyrm.ranking import EQUAL

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Group:
    """Responses to one prompt.

    best: index of the response that is known to be better than all others.
    labelled: (i, j): i is known to be better than j.
    """

    prompt: str
    domain: str | None
    responses: tuple[str, ...]
    best: int
    labelled: tuple[tuple[int, int], ...]

    def found(self, strengths: Matrix) -> float:
        """Return 1 if the best response is the strongest, its share if others are as strong, else 0."""
        strongest = np.flatnonzero(strengths > strengths.max() - EQUAL)
        return 1 / len(strongest) if self.best in strongest else 0.0

    def tau(self, strengths: Matrix) -> float:
        """Return the share of labelled pairs in the right order minus that of those in the wrong order."""
        differences = [strengths[i] - strengths[j] for i, j in self.labelled]
        return float(np.mean([(d > EQUAL) - (d < -EQUAL) for d in map(float, differences)]))


def groups_of(pairs: Iterable[PreferencePair], size: int, seed: int = 0) -> list[Group]:
    """Return a group for each response with enough worse ones: `size` - 1 of these, all in random order.

    A response is worse than another if a pair says so, or if it is worse than a third one that is worse. A response
    that is worse than itself, as contradicting pairs would have it, is no best one.
    """
    worse: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    domains: dict[str, str | None] = {}
    for pair in pairs:
        worse[pair.prompt][pair.chosen].add(pair.rejected)
        domains[pair.prompt] = pair.domain
    rng, groups = np.random.default_rng(seed), []
    for prompt, direct in worse.items():
        below = {response: reachable(direct, response) for response in list(direct)}
        for best, others in below.items():
            if len(others) < size - 1 or best in others:
                continue
            chosen = rng.choice(sorted(others), size - 1, replace=False).tolist()
            texts = [str(text) for text in rng.permutation([best, *chosen])]
            known = [
                (i, j)
                for i, one in enumerate(texts)
                for j, other in enumerate(texts)
                if other in below.get(one, ()) and one not in below.get(other, ())
            ]
            groups.append(Group(prompt, domains[prompt], tuple(texts), texts.index(best), tuple(known)))
    if not groups:
        raise InvalidInput(f"no response of these pairs is known to be better than {size - 1} others")
    return groups


@dataclass(frozen=True, slots=True)
class SimulatedGroup:
    """The truth about n responses, and what two models say.

    scores: [n] of the pointwise model, log-odds.
    margins: [n, n] of the pairwise model, of all pairs.
    """

    group: Group
    scores: Matrix
    margins: Matrix


def simulate(size: int, count: int, pointwise_noise: float, seed: int = 0) -> list[SimulatedGroup]:
    """Draw groups: strengths are standard normal; a score is a strength plus noise, a margin a difference plus noise.

    Noise is normal. That of a margin has variance 1: half of it belongs to the two responses and is the same in all
    their pairs, as when a model likes a certain style; half is new in each pair and averages out.

    pointwise_noise: standard deviation of a score's noise. Two scores differ by noise of sqrt(2) times that, so both
        models judge a single pair equally well at 0.71.
    """
    rng, simulated = np.random.default_rng(seed), []
    for number in range(count):
        truth = rng.normal(size=size)
        seen = truth + 0.5 * rng.normal(size=size)
        new = np.triu(rng.normal(scale=0.5**0.5, size=(size, size)), 1)
        margins = np.subtract.outer(seen, seen) + new - new.T
        np.fill_diagonal(margins, np.nan)
        known = tuple((i, j) for i in range(size) for j in range(size) if truth[i] > truth[j])
        group = Group(f"{number}", None, ("",) * size, int(truth.argmax()), known)
        simulated.append(SimulatedGroup(group, truth + pointwise_noise * rng.normal(size=size), margins))
    return simulated


def pair_accuracy(simulated: Sequence[SimulatedGroup]) -> tuple[float, float]:
    """Return the share of pairs that the scores order rightly, and that the margins do."""
    right = [(one.scores[i] > one.scores[j], one.margins[i, j] > 0) for one in simulated for i, j in one.group.labelled]
    scores, margins = np.mean(right, axis=0)
    return float(scores), float(margins)
