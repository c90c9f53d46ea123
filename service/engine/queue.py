"""Who waits for the engine, and who goes next. Pure: no clock, no engine."""

import asyncio
from bisect import insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoding

# How much longer than its shorter neighbours the longest reading of a padded batch may make the batch.
MAX_PADDING_SHARE = 0.2
# Mates of similar length are looked for among this many: a longer search would hold up the event loop.
SEARCHED_ITEMS = 1024


@dataclass(frozen=True, slots=True)
class Answered:
    """Label logits [readings, 2], and how long they waited and ran."""

    logits: NDArray[np.float32]
    queue_s: float
    run_s: float

    def followed_by(self, other: "Answered") -> "Answered":
        """Of both, one after the other."""
        logits = np.concatenate([self.logits, other.logits])
        return Answered(logits, self.queue_s + other.queue_s, self.run_s + other.run_s)


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a queue and its engine are, and what is wrong with them, if anything is."""

    queue_items: int
    queue_tokens: int
    wait_s: float
    restarts: int
    is_up: bool
    trouble: str | None


@dataclass(slots=True, eq=False)
class Waiting:
    """Readings that belong together (both orders of one comparison), and who waits for them."""

    readings: tuple[Encoding, ...]
    answer: "asyncio.Future[Answered]"
    arrived: float
    flow: Hashable = None
    turn: float = 0.0
    longest: int = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.longest = max(map(len, self.readings))
        self.tokens = sum(map(len, self.readings))

    @property
    def is_abandoned(self) -> bool:
        return self.answer.done()


class FairQueue:
    """Start-time fair queueing (Goyal, Vin, Cheng 1996) over flows, in tokens.

    An item's turn is where its flow's last one ended, or now if the flow had nothing waiting. So a call with two
    thousand items is served beside single requests that come later, and not before them; one flow alone is served in
    the order of arrival. What goes next is the item whose turn is first, so nobody starves.

    pads: as of the engine. If its rows share no padding, a batch is simply who comes next.
    """

    def __init__(self, max_batch_tokens: int, *, pads: bool) -> None:
        self.max_batch_tokens, self.pads = max_batch_tokens, pads
        self.tokens = 0
        self._items: list[Waiting] = []
        self._now = 0.0
        self._ends: dict[Hashable, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Waiting) -> None:
        end, waiting = self._ends.get(item.flow, (0.0, 0))
        item.turn = max(self._now, end)
        self._ends[item.flow] = (item.turn + item.tokens, waiting + 1)
        insort(self._items, item, key=lambda other: (other.turn, other.arrived))
        self.tokens += item.tokens

    def take(self) -> list[Waiting]:
        """The next batch; empty if nobody waits. Items nobody waits for any more are dropped on the way."""
        batch, seen = (_of_similar_length if self.pads else _in_turn)(self._items, self.max_batch_tokens)
        if batch:
            self._now = batch[0].turn
        chosen = set(map(id, batch))
        gone = [item for item in islice(self._items, seen) if id(item) in chosen or item.is_abandoned]
        dropped = set(map(id, gone))
        self._items[:seen] = [item for item in islice(self._items, seen) if id(item) not in dropped]
        for item in gone:
            self._leave(item)
        return batch

    def clear(self) -> list[Waiting]:
        """Everybody, in the order of turns; nobody waits afterwards."""
        items, self._items, self._ends, self.tokens = self._items, [], {}, 0
        return items

    def _leave(self, item: Waiting) -> None:
        self.tokens -= item.tokens
        end, waiting = self._ends[item.flow]
        if waiting == 1:
            del self._ends[item.flow]
        else:
            self._ends[item.flow] = (end, waiting - 1)


def _in_turn(items: Sequence[Waiting], max_batch_tokens: int) -> tuple[list[Waiting], int]:
    """Who comes next while the tokens last, and how many items were looked at. The first goes whatever its size."""
    batch: list[Waiting] = []
    tokens = seen = 0
    for item in items:
        if not item.is_abandoned:
            if batch and tokens + item.tokens > max_batch_tokens:
                break
            batch.append(item)
            tokens += item.tokens
        seen += 1
    return batch, seen


def _of_similar_length(items: Sequence[Waiting], max_batch_tokens: int) -> tuple[list[Waiting], int]:
    """The first and those nearest to it in length, while the padded batch stays within the budget and little of it is
    padding. One above the budget goes alone."""
    searched = list(islice(items, SEARCHED_ITEMS))
    alive = [item for item in searched if not item.is_abandoned]
    if not alive:
        return [], len(searched)
    first = alive[0]
    batch = [first]
    # Running totals: adding up each candidate batch anew would hold up the event loop.
    rows, tokens, longest = len(first.readings), first.tokens, first.longest
    for item in sorted(alive[1:], key=lambda other: abs(other.longest - first.longest)):
        joined = rows + len(item.readings), tokens + item.tokens, max(longest, item.longest)
        if _fits(*joined, max_batch_tokens):
            batch.append(item)
            rows, tokens, longest = joined
    return batch, len(searched)


def _fits(rows: int, tokens: int, longest: int, max_batch_tokens: int) -> bool:
    cost = rows * longest
    return cost <= max_batch_tokens and cost - tokens <= MAX_PADDING_SHARE * cost
