"""The margin at which one order is enough."""

import numpy as np

from tinyrm.comparison import Preference
from tinyrm.manifest import AutoSwap
from tinyrm.pairs import PreferencePair
from tinyrm.scorer import Scorer
from tinyrm.spec import ClozeSpec

# As for a lower precision: what saves half of the work may change as little.
MAX_FLIPS = 0.005


def score_pairs(scorer: Scorer, spec: ClozeSpec, pairs: list[PreferencePair]) -> list[Preference]:
    """Return preferences of held-out pairs, both orders read, the better response as A."""
    instructions = [spec.instruction(p.domain, or_default=True) for p in pairs]
    return scorer.score([p.comparison() for p in pairs], instructions)


def fit_auto_swap(preferences: list[Preference], temperature: float, max_flips: float = MAX_FLIPS) -> AutoSwap:
    """Return the smallest margin of one order at which skipping the other changes at most `max_flips` of preferences.

    Each pair counts twice, since either of its responses may stand first.
    """
    orders = np.array([p.order_margins for p in preferences]) / temperature
    both = np.repeat(orders.mean(axis=1), 2)
    one = orders.ravel()
    sizes = np.abs(one)
    descending = np.argsort(-sizes, kind="stable")
    flipped = np.cumsum((np.sign(one) != np.sign(both))[descending])
    # Equal margins need a second order all together or not at all.
    last_of_equals = np.append(np.diff(sizes[descending]) < 0, True)
    enough = sizes[descending][last_of_equals & (flipped <= max_flips * len(one))]
    margin = float(enough[-1]) if len(enough) else float(sizes.max(initial=0)) + 1
    alone = sizes >= margin
    flips = float((alone & (np.sign(one) != np.sign(both))).mean())
    return AutoSwap(margin=margin, pairs=len(preferences), saved=float(alone.mean()), flips=flips, max_flips=max_flips)
