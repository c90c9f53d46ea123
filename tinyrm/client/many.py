"""Long lists: in batches, some of them under way at once, results in the order of the items."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Protocol, TypeVar

from tinyrm.api import ErrorBody
from tinyrm.errors import CallRefused, InvalidInput

T = TypeVar("T")
R = TypeVar("R")

BATCH_ITEMS = 64
CONCURRENCY = 4
TOO_MUCH = (413, 422)  # an item that is wrong fails alone, so 422 can only mean the list


class Bar(Protocol):
    """What is used of tqdm."""

    def update(self, n: float = 1) -> bool | None: ...


class _NoBar:
    def update(self, n: float = 1) -> None:
        """Nothing is shown."""


def progress_bar(total: int | None, *, shown: bool, done: int = 0) -> AbstractContextManager[Bar]:
    """A bar on standard error. Raises InvalidInput if it is to be shown and tqdm is missing."""
    if not shown:
        return nullcontext(_NoBar())
    try:
        from tqdm import tqdm  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise InvalidInput("a progress bar needs tqdm: pip install 'tinyrm[progress]'") from error
    bar: AbstractContextManager[Bar] = tqdm(total=total, initial=done, unit="pair")
    return bar


def length_of(items: Iterable[object]) -> int | None:
    return len(items) if isinstance(items, Sized) else None


def in_batches(items: Iterable[T], batch_items: int) -> Iterator[list[T]]:
    """Raises InvalidInput if a batch could hold nothing."""
    if batch_items < 1:
        raise InvalidInput(f"batch_items: {batch_items}; at least 1")
    iterator = iter(items)
    while batch := list(islice(iterator, batch_items)):
        yield batch


def in_order(
    work: Callable[[list[T]], list[R]], items: Iterable[T], *, batch_items: int, concurrency: int
) -> Iterator[R]:
    """What `work` makes of each batch, in threads. Items are taken as they are needed; an error ends it all."""
    under_way: deque[Future[list[R]]] = deque()
    threads = ThreadPoolExecutor(_checked(concurrency), thread_name_prefix="tinyrm-client")
    try:
        for batch in in_batches(items, batch_items):
            under_way.append(threads.submit(work, batch))
            if len(under_way) == concurrency:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


async def in_order_async(
    work: Callable[[list[T]], Awaitable[list[R]]], items: Iterable[T], *, batch_items: int, concurrency: int
) -> AsyncGenerator[R, None]:
    """As `in_order`, in tasks."""

    async def run(batch: list[T]) -> list[R]:
        return await work(batch)

    _checked(concurrency)
    under_way: deque[asyncio.Task[list[R]]] = deque()
    try:
        for batch in in_batches(items, batch_items):
            under_way.append(asyncio.create_task(run(batch)))
            if len(under_way) == concurrency:
                for result in await under_way[0]:
                    yield result
                under_way.popleft()
        for task in under_way:
            for result in await task:
                yield result
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def halves(items: list[T], error: CallRefused) -> tuple[list[T], list[T]] | None:
    """Of a list that was refused as a whole for its length or size; None if it is one item. Raises other refusals."""
    if error.status not in TOO_MUCH:
        raise error
    middle = len(items) // 2
    return (items[:middle], items[middle:]) if middle else None


def as_item_error(error: CallRefused) -> ErrorBody:
    return ErrorBody(type=error.type, message=str(error))


def _checked(concurrency: int) -> int:
    if concurrency < 1:
        raise InvalidInput(f"concurrency: {concurrency}; at least 1")
    return concurrency
