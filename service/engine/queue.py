"""A fair queue of work with deadlines, and which of its items run next. Pure: no clock, no engine."""

import asyncio
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from typing import Generic, NamedTuple, Protocol, TypeVar

from service.engine.types import EngineResult
from tinyrm.encoding import Encoding

# Largest share of a batch that may be padding.
MAX_PADDING_SHARE = 0.2
# Items of similar length are chosen among the first items only: a longer search would block the event loop.
SEARCHED_ITEMS = 1024


class Queued(Protocol):
    """Work in a queue.

    tokens: its size, in tokens or another unit that all items of the queue share.
    arrived_s, deadline_s: on one clock; a deadline of infinity never passes.
    fairness_key: items with the same key get one share of the service together.
    turn: position in the order of service, set by the queue.
    is_queued: whether it is in the queue, set by the queue.
    is_abandoned: whether its caller no longer waits.
    """

    arrived_s: float
    fairness_key: Hashable
    deadline_s: float
    turn: float
    is_queued: bool

    @property
    def tokens(self) -> int: ...

    @property
    def is_abandoned(self) -> bool: ...


I = TypeVar("I", bound=Queued)  # noqa: E741


@dataclass(slots=True, eq=False)
class QueueItem:
    """Sequences that belong together, such as both orders of one comparison, and the future of their result.

    The other fields are those of `Queued`, on the clock of the batcher.

    longest: tokens of the longest sequence.
    tokens: tokens of all sequences.
    """

    sequences: tuple[Encoding, ...]
    result: "asyncio.Future[EngineResult]"
    arrived_s: float
    fairness_key: Hashable = None
    deadline_s: float = math.inf
    turn: float = 0.0
    is_queued: bool = False
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


class Chosen(NamedTuple, Generic[I]):
    """The next batch, and the items that cannot be ready by their deadlines any more."""

    batch: list[I]
    late: list[I]


# Returns the tokens that can run before an item's deadline.
TokensInTime = Callable[[I], float]
# Chooses among the items, in the order of their turns, within a number of tokens; also returns how many it looked at.
Choose = Callable[[Sequence[I], int, TokensInTime[I]], tuple[Chosen[I], int]]


@dataclass(slots=True)
class Share:
    """What one key has in the queue.

    end: where its last turn ends.
    """

    end: float
    items: int = 0
    tokens: int = 0


class FairQueue(Generic[I]):
    """Start-time fair queueing (Goyal, Vin, Cheng 1996) over fairness keys, in tokens.

    An item's turn is the end of its key's last turn, or now if the key has no item in the queue. A call with two
    thousand items therefore shares the engine with single requests that arrive later; items of one key run in the
    order of arrival. The item with the earliest turn runs next, so no item starves.

    choose: `choose_in_turn`, or `choose_similar_lengths` for an engine that pads a batch to one length.
    """

    def __init__(self, max_batch_tokens: int, choose: Choose[I]) -> None:
        self.max_batch_tokens, self._choose = max_batch_tokens, choose
        self.tokens = 0
        self._items: list[I] = []
        self._now = 0.0
        self._due_tokens = 0  # of items whose turn is now
        self._shares: dict[Hashable, Share] = {}

    def __len__(self) -> int:
        return len(self._items)

    def tokens_of(self, fairness_key: Hashable) -> int:
        """Return the tokens of one key."""
        share = self._shares.get(fairness_key)
        return share.tokens if share else 0

    def tokens_ahead(self, fairness_key: Hashable) -> float:
        """Return the tokens that would run before a new item of this key."""
        own = self._shares.get(fairness_key)
        if own is None:
            return self._due_tokens
        # The turns of a key follow each other, so its tokens before a turn need no search through its items.
        others = (share for share in self._shares.values() if share is not own)
        return own.tokens + sum(min(max(own.end - share.end + share.tokens, 0), share.tokens) for share in others)

    def add(self, item: I) -> None:
        share = self._shares.get(item.fairness_key)
        if share is None:
            share = self._shares[item.fairness_key] = Share(self._now)
        item.turn = max(self._now, share.end)
        item.is_queued = True
        share.end = item.turn + item.tokens
        share.items += 1
        share.tokens += item.tokens
        insort(self._items, item, key=position)
        self.tokens += item.tokens
        if item.turn <= self._now:
            self._due_tokens += item.tokens

    def discard(self, item: I) -> None:
        """Remove an item whose caller no longer waits, so that it counts no more."""
        index = bisect_left(self._items, position(item), key=position)
        while self._items[index] is not item:
            index += 1
        del self._items[index]
        self._uncount(item)

    def take(self, now_s: float = 0.0, tokens_per_s: float = math.inf) -> Chosen[I]:
        """Remove and return the next batch, and the items that cannot be ready in time. Both are empty without work.

        now_s: the time on the clock of the deadlines.
        tokens_per_s: the rate at which the batch will run.

        If nothing else can run, an item runs that is probably late: the rate is an estimate, which only runs correct.
        """

        def tokens_in_time(item: I) -> float:
            left_s = item.deadline_s - now_s
            return left_s * tokens_per_s if left_s > 0 else 0.0

        (batch, late), searched = self._choose(self._items, self.max_batch_tokens, tokens_in_time)
        if not batch:
            batch = [item for item in late if item.deadline_s > now_s][:1]
        if batch and batch[0].turn > self._now:
            self._now = batch[0].turn
            self._due_tokens = sum(item.tokens for item in takewhile(lambda item: item.turn <= self._now, self._items))
        late = [item for item in late if item not in batch[:1]]
        abandoned = [item for item in islice(self._items, searched) if item.is_abandoned]
        for item in chain(batch, late, abandoned):
            self._uncount(item)
        self._items[:searched] = [item for item in islice(self._items, searched) if item.is_queued]
        return Chosen(batch, late)

    def clear(self) -> list[I]:
        """Remove all items and return them in the order of turns."""
        items, self._items = self._items, []
        for item in items:
            self._uncount(item)
        return items

    def _uncount(self, item: I) -> None:
        item.is_queued = False
        self.tokens -= item.tokens
        if item.turn <= self._now:
            self._due_tokens -= item.tokens
        share = self._shares[item.fairness_key]
        share.items -= 1
        share.tokens -= item.tokens
        if not share.items:
            del self._shares[item.fairness_key]


def position(item: Queued) -> tuple[float, float]:
    return item.turn, item.arrived_s


def choose_in_turn(items: Sequence[I], max_batch_tokens: int, tokens_in_time: TokensInTime[I]) -> tuple[Chosen[I], int]:
    """Return the next items within the tokens. The first runs whatever its size.

    A batch ends early if one of its items would otherwise be late.
    """
    chosen: Chosen[I] = Chosen([], [])
    room: float = max_batch_tokens
    tokens = searched = 0
    for item in items:
        if not item.is_abandoned:
            in_time = tokens_in_time(item)
            if in_time < item.tokens:
                chosen.late.append(item)
            elif chosen.batch and tokens + item.tokens > min(room, in_time):
                break
            else:
                chosen.batch.append(item)
                tokens, room = tokens + item.tokens, min(room, in_time)
        searched += 1
    return chosen, searched


def choose_similar_lengths(
    items: Sequence[QueueItem], max_batch_tokens: int, tokens_in_time: TokensInTime[QueueItem]
) -> tuple[Chosen[QueueItem], int]:
    """Return the first item and those nearest to it in length.

    The padded batch stays within `max_batch_tokens` and within the deadlines of its items, and little of it is padding.
    A larger item runs alone.
    """
    searched = list(islice(items, SEARCHED_ITEMS))
    alive: list[QueueItem] = []
    late: list[QueueItem] = []
    for item in searched:
        if not item.is_abandoned:
            (late if tokens_in_time(item) < item.tokens else alive).append(item)
    if not alive:
        return Chosen([], late), len(searched)
    first = alive[0]
    batch = [first]
    # Running totals: a new sum for each candidate would block the event loop.
    rows, tokens, longest = len(first.sequences), first.tokens, first.longest
    room = min(max_batch_tokens, tokens_in_time(first))
    for item in sorted(alive[1:], key=lambda other: abs(other.longest - first.longest)):
        new_rows, new_tokens = rows + len(item.sequences), tokens + item.tokens
        new_longest = max(longest, item.longest)
        new_room = min(room, tokens_in_time(item))
        cost = new_rows * new_longest
        if cost <= new_room and cost - new_tokens <= MAX_PADDING_SHARE * cost:
            batch.append(item)
            rows, tokens, longest, room = new_rows, new_tokens, new_longest, new_room
    return Chosen(batch, late), len(searched)
