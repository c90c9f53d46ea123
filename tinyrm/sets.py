"""Responses that are too many for one sequence of a set: split them, and join the scores of the parts.

A model of which a score depends on no other response may read them in any parts. Any other model's scores are relative
to their set, so that all sets share some responses, the anchors: with s the logits of a set and m their mean over the
anchors in it, a response has the score

    mean over the sets that hold it of (s - m)

which is s itself, moved by a constant, if there is one set.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tinyrm.errors import EngineFailed

Scores = NDArray[np.float64]

# What all sets share: at least one response, at most so many, and beyond the first at most this part of the room.
MAX_ANCHORS = 4
ANCHOR_SHARE = 1 / 4


def split(sizes: Sequence[int], room: int, *, overlapping: bool) -> list[list[int]]:
    """Return the indices of the responses of each set, ascending: one set if all fit.

    sizes: tokens of each response.
    room: tokens that a set has for its responses. One that is larger gets a set of its own, with the anchors.
    overlapping: whether all sets share the anchors, which are the shortest responses; otherwise none is in two sets.
    """
    if sum(sizes) <= room:
        return [list(range(len(sizes)))]
    anchors = find_anchors(sizes, room) if overlapping else []
    room -= sum(sizes[i] for i in anchors)
    parts: list[list[int]] = []
    left = 0
    for i in (i for i in range(len(sizes)) if i not in anchors):
        if not parts or sizes[i] > left:
            parts.append([])
            left = room
        parts[-1].append(i)
        left -= sizes[i]
    return [sorted([*anchors, *part]) for part in parts] or [anchors]


def find_anchors(sizes: Sequence[int], room: int) -> list[int]:
    """Return the shortest responses, as many as MAX_ANCHORS and ANCHOR_SHARE allow, and at least one."""
    anchors: list[int] = []
    used = 0
    for i in sorted(range(len(sizes)), key=sizes.__getitem__)[:MAX_ANCHORS]:
        used += sizes[i]
        if anchors and used > ANCHOR_SHARE * room:
            break
        anchors.append(i)
    return anchors


def read_set(row: NDArray[np.float32], columns: Sequence[int]) -> Scores:
    """Return the logit of each response [n] from one sequence's row; NaN for a response in another set.

    columns: as in `Encoding`.

    Raises EngineFailed if a logit is not finite, or is missing.
    """
    if max(columns) >= len(row):
        raise EngineFailed(f"expected {max(columns) + 1} logits of a set, got {len(row)}")
    places = np.array(columns)
    scores = np.asarray(row, dtype=np.float64)[places]
    if not np.isfinite(scores[places >= 0]).all():
        raise EngineFailed(f"expected finite logits of a set, got {scores.tolist()}")
    return np.where(places < 0, np.nan, scores)


def join(sets: Iterable[Scores], *, overlapping: bool) -> Scores:
    """Return one score for each response [n], from the scores of `read_set` of all sets that `split` made.

    overlapping: as in `split`.
    """
    scores: Scores = np.stack(list(sets))
    if overlapping and len(scores) > 1:
        # An anchor that was given twice counts once.
        anchors = np.unique(scores[:, np.isfinite(scores).all(axis=0)], axis=1)
        scores -= anchors.mean(axis=1, keepdims=True)
    joined: Scores = np.nanmean(scores, axis=0)
    return joined
