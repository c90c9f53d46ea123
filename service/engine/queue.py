"""The queue before the engine: which items go next. Pure: no clock, no engine."""

import asyncio
from bisect import insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from service.engine.types import EngineResult
from tinyrm.encoding import Encoding

# How much longer than its shorter neighbours the longest sequence of a padded batch may make the batch.
MAX_PADDING_SHARE = 0.2
# Items of similar length are searched for among this many: a longer search would hold up the event loop.
SEARCHED_ITEMS = 1024


@dataclass(slots=True, eq=False)
class QueueItem:
    """Sequences that belong together (both orders of one comparison), and the future of their result.

    arrived_s: on the clock of time.perf_counter().
    fairness_key: items with the same key share one part of the engine.
    turn: set by the queue.
    """

    sequences: tuple[Encoding, ...]
    result: "asyncio.Future[EngineResult]"
    arrived_s: float
    fairness_key: Hashable = None
    turn: float = 0.0
    longest: int = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.longest = max(map(len, self.sequences))
        self.tokens = sum(map(len, self.sequences))

    @property
    def is_abandoned(self) -> bool:
        """Whether its caller no longer waits."""
        return self.result.done()


class FairQueue:
    """Start-time fair queueing (Goyal, Vin, Cheng 1996) over fairness keys, in tokens.

    An item's turn is where the last one of its key ended, or now if the key had nothing in the queue. So a call with
    two thousand items is served beside single requests that arrive later, and not before them; one key alone is served
    in the order of arrival. The item with the first turn goes next, so no item starves.

    pads: as of the engine. If its sequences share no padding, a batch is simply the next items.
    """

    def __init__(self, max_batch_tokens: int, *, pads: bool) -> None:
        self.max_batch_tokens, self.pads = max_batch_tokens, pads
        self.tokens = 0
        self._items: list[QueueItem] = []
        self._now = 0.0
        # Fairness key -> the end of its last turn, and how many items it has here.
        self._keys: dict[Hashable, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: QueueItem) -> None:
        end, count = self._keys.get(item.fairness_key, (0.0, 0))
        item.turn = max(self._now, end)
        self._keys[item.fairness_key] = (item.turn + item.tokens, count + 1)
        insort(self._items, item, key=lambda other: (other.turn, other.arrived_s))
        self.tokens += item.tokens

    def take(self) -> list[QueueItem]:
        """Return the next batch; empty if there is no work. Abandoned items are dropped on the way."""
        batch, searched = (_of_similar_length if self.pads else _in_turn)(self._items, self.max_batch_tokens)
        if batch:
            self._now = batch[0].turn
        chosen = set(map(id, batch))
        gone = [item for item in islice(self._items, searched) if id(item) in chosen or item.is_abandoned]
        dropped = set(map(id, gone))
        self._items[:searched] = [item for item in islice(self._items, searched) if id(item) not in dropped]
        for item in gone:
            self.tokens -= item.tokens
            end, count = self._keys.pop(item.fairness_key)
            if count > 1:
                self._keys[item.fairness_key] = (end, count - 1)
        return batch

    def clear(self) -> list[QueueItem]:
        """Return all items, in the order of turns, and forget them."""
        items, self._items, self._keys, self.tokens = self._items, [], {}, 0
        return items


def _in_turn(items: Sequence[QueueItem], max_batch_tokens: int) -> tuple[list[QueueItem], int]:
    """Return the next items within the tokens, and how many items were searched. The first goes whatever its size."""
    batch: list[QueueItem] = []
    tokens = searched = 0
    for item in items:
        if not item.is_abandoned:
            if batch and tokens + item.tokens > max_batch_tokens:
                break
            batch.append(item)
            tokens += item.tokens
        searched += 1
    return batch, searched


def _of_similar_length(items: Sequence[QueueItem], max_batch_tokens: int) -> tuple[list[QueueItem], int]:
    """Return the first item and those nearest to it in length, and how many items were searched.

    The padded batch stays within the budget, and little of it is padding. An item above the budget goes alone.
    """
    searched = list(islice(items, SEARCHED_ITEMS))
    alive = [item for item in searched if not item.is_abandoned]
    if not alive:
        return [], len(searched)
    first = alive[0]
    batch = [first]
    # Running totals: adding up each candidate batch anew would hold up the event loop.
    rows, tokens, longest = len(first.sequences), first.tokens, first.longest
    for item in sorted(alive[1:], key=lambda other: abs(other.longest - first.longest)):
        new_rows, new_tokens = rows + len(item.sequences), tokens + item.tokens
        new_longest = max(longest, item.longest)
        cost = new_rows * new_longest
        if cost <= max_batch_tokens and cost - new_tokens <= MAX_PADDING_SHARE * cost:
            batch.append(item)
            rows, tokens, longest = new_rows, new_tokens, new_longest
    return batch, len(searched)
