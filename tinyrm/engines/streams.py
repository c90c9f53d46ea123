"""Several runs at once: a caller takes a free runner and gives it back."""

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

R = TypeVar("R")


class Streams(Generic[R]):
    """A fixed set of runners; a caller beyond their number waits for the first to come free."""

    def __init__(self, runners: Sequence[R]) -> None:
        self._free: queue.SimpleQueue[R] = queue.SimpleQueue()
        for runner in runners:
            self._free.put(runner)

    @classmethod
    def of(cls, make: Callable[[], R], count: int) -> "Streams[R]":
        return cls([make() for _ in range(count)])

    @contextmanager
    def take(self) -> Iterator[R]:
        runner = self._free.get()
        try:
            yield runner
        finally:
            self._free.put(runner)
