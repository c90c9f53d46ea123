"""The queue in front of the engine: which items run next. Pure: no clock, no engine."""

import asyncio
from bisect import insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from service.engine.types import EngineResult
from tinyrm.encoding import Encoding

# Largest share of a batch that may be padding.
MAX_PADDING_SHARE = 0.2
# Items of similar length are chosen among the first items only: a longer search would block the event loop.
SEARCHED_ITEMS = 1024


@dataclass(slots=True, eq=False)
class QueueItem:
    """Sequences that belong together, such as both orders of one comparison, and the future of their result.

    arrived_s: on the clock of time.perf_counter().
    fairness_key: items with the same key get one share of the engine together.
    turn: position in the order of service, set by the queue.
    longest: tokens of the longest sequence.
    tokens: tokens of all sequences.
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

    def complete(self, result: EngineResult) -> None:
        if not self.result.done():
            self.result.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)


class FairQueue:
    """Start-time fair queueing (Goyal, Vin, Cheng 1996) over fairness keys, in tokens.

    An item's turn is the end of its key's last turn, or now if the key has no item in the queue. A call with two
    thousand items therefore shares the engine with single requests that arrive later; items of one key run in the
    order of arrival. The item with the earliest turn runs next, so no item starves.

    pads: whether the engine pads a batch to one length; if not, a batch is simply the next items.
    """

    def __init__(self, max_batch_tokens: int, *, pads: bool) -> None:
        self.max_batch_tokens, self.pads = max_batch_tokens, pads
        self.tokens = 0
        self._items: list[QueueItem] = []
        self._now = 0.0
        # Fairness key -> the end of its last turn, and its number of items in the queue.
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
        """Return the next batch, empty if there is no work. Abandoned items are dropped on the way."""
        batch, searched = (choose_similar_lengths if self.pads else choose_in_turn)(self._items, self.max_batch_tokens)
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
        """Remove all items and return them in the order of turns."""
        items, self._items, self._keys, self.tokens = self._items, [], {}, 0
        return items


def choose_in_turn(items: Sequence[QueueItem], max_batch_tokens: int) -> tuple[list[QueueItem], int]:
    """Return the next items within the tokens, and the number of items searched. The first runs whatever its size."""
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


def choose_similar_lengths(items: Sequence[QueueItem], max_batch_tokens: int) -> tuple[list[QueueItem], int]:
    """Return the first item and those nearest to it in length, and the number of items searched.

    The padded batch stays within `max_batch_tokens`, and little of it is padding. A larger item runs alone.
    """
    searched = list(islice(items, SEARCHED_ITEMS))
    alive = [item for item in searched if not item.is_abandoned]
    if not alive:
        return [], len(searched)
    first = alive[0]
    batch = [first]
    # Running totals: a new sum for each candidate would block the event loop.
    rows, tokens, longest = len(first.sequences), first.tokens, first.longest
    for item in sorted(alive[1:], key=lambda other: abs(other.longest - first.longest)):
        new_rows, new_tokens = rows + len(item.sequences), tokens + item.tokens
        new_longest = max(longest, item.longest)
        cost = new_rows * new_longest
        if cost <= max_batch_tokens and cost - new_tokens <= MAX_PADDING_SHARE * cost:
            batch.append(item)
            rows, tokens, longest = new_rows, new_tokens, new_longest
    return batch, len(searched)
