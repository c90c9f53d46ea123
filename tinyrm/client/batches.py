"""Process long lists in batches, several at once, with results in the order of the items."""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

from tinyrm.client.transport import Transport
from tinyrm.errors import CallRefused, InvalidInput

T = TypeVar("T")
R = TypeVar("R")

BATCH_ITEMS = 64
CONCURRENCY = 4
TOO_MUCH = (413, 422)  # an invalid item fails alone, so 422 can only mean the list


class Bar(Protocol):
    """The part of tqdm that is used."""

    def update(self, n: float = 1) -> bool | None: ...


class _NoBar:
    def update(self, n: float = 1) -> None:
        """Show nothing."""


def progress_bar(total: int | None, *, shown: bool, done: int = 0) -> AbstractContextManager[Bar]:
    """Return a bar on standard error. Raises InvalidInput if it must be shown and tqdm is missing."""
    if not shown:
        return nullcontext(_NoBar())
    try:
        from tqdm import tqdm  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InvalidInput("a progress bar needs tqdm: pip install 'tinyrm[progress]'") from error
    bar: AbstractContextManager[Bar] = tqdm(total=total, initial=done, unit="pair")
    return bar


async def in_order(
    transport: Transport,
    work: Callable[[list[T]], Coroutine[Any, Any, list[R]]],
    items: Iterable[T],
    *,
    batch_items: int | Callable[[], int],
    concurrency: int,
) -> AsyncGenerator[R, None]:
    """Yield the results of `work` for each batch, in order. Items are read as needed; the first error ends it.

    batch_items: items of a batch, or a function that returns those of the next one.
    """
    next_items = batch_items if callable(batch_items) else lambda: batch_items
    for name, value in {"batch_items": next_items(), "concurrency": concurrency}.items():
        if value < 1:
            raise InvalidInput(f"{name}: {value}; at least 1")
    running: deque[Awaitable[list[R]]] = deque()
    async with transport.tasks(concurrency) as start:
        iterator = iter(items)
        while batch := list(islice(iterator, next_items())):
            running.append(start(partial(work, batch)))
            if len(running) == concurrency:
                for result in await running.popleft():
                    yield result
        while running:
            for result in await running.popleft():
                yield result


def halves(items: list[T], error: CallRefused) -> tuple[list[T], list[T]] | None:
    """Return the halves of a list that was refused for its length or size; None for one item. Raises other refusals."""
    if error.status not in TOO_MUCH:
        raise error
    middle = len(items) // 2
    return (items[:middle], items[middle:]) if middle else None
