"""Samples that arrive one by one and are judged together: a cohort is answered when it is full or its time is over."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from tinyrm.errors import Overloaded, ShuttingDown, Unavailable

S = TypeVar("S")

# A cohort is a list of comparisons, and each list finds its way into the queue by itself. A few at a time keep an
# engine full; all that fill up in one moment would be refused for one another's sake.
JUDGED_AT_ONCE = 4

FULL, DEADLINE, DRAIN = "full", "deadline", "drain"


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a sample stands among the others of its cohort.

    reward: log-odds, mean 0 over the cohort. score: mean probability to beat another of the cohort, in [0, 1].
    tokens: the sample's part of what the cohort cost. partial: somebody was missing.
    """

    reward: float
    score: float
    tokens: int = 0
    partial: bool = False


# Nobody to be compared with: as good as anybody.
ALONE = Placed(reward=0.0, score=0.5, partial=True)


@dataclass(frozen=True, slots=True)
class CohortLimits:
    """timeout_s: from a cohort's first sample on. max_bytes: of all samples that wait or are judged."""

    timeout_s: float
    max_open: int
    max_bytes: int


class Observer(Protocol):
    """Who is told; see service/metrics.py."""

    def observe_cohorts(self, open_cohorts: int, waiting_samples: int) -> None: ...

    def observe_cohort_end(self, reason: str) -> None: ...

    def observe_shed(self, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Member(Generic[S]):
    sample: S
    size_bytes: int
    answer: "asyncio.Future[Placed]"


@dataclass(slots=True, eq=False)
class _Cohort(Generic[S]):
    key: Hashable
    size: int
    timer: asyncio.TimerHandle | None = None
    judging: "asyncio.Task[None] | None" = None
    members: list[_Member[S]] = field(default_factory=list)


class Cohorts(Generic[S]):
    """judge: places the samples of one cohort, two or more, in their order.

    Every sample that is taken gets exactly one answer or error, unless whoever waits for it leaves.
    """

    def __init__(
        self, judge: Callable[[Sequence[S]], Awaitable[Sequence[Placed]]], limits: CohortLimits, observer: Observer
    ) -> None:
        self._judge, self._limits, self._observer = judge, limits, observer
        self._open: dict[Hashable, _Cohort[S]] = {}
        self._judged: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(JUDGED_AT_ONCE)
        self._samples = self._bytes = 0
        self._is_closing = False

    async def join(self, key: Hashable, sample: S, *, size: int, size_bytes: int) -> Placed:
        """Wait until the cohort of `key` has `size` samples or its time is over, and for its judgement.

        Raises Overloaded, ShuttingDown, and what `judge` raises. Cancelled, the sample leaves its cohort.
        """
        try:
            cohort = self._cohort_of((key, size), size, size_bytes)
        except Unavailable as error:
            self._observer.observe_shed(error.type)
            raise
        member = _Member(sample, size_bytes, asyncio.get_running_loop().create_future())
        cohort.members.append(member)
        self._samples += 1
        self._bytes += size_bytes
        if len(cohort.members) == size:
            self._close(cohort, FULL)
        self._tell()
        try:
            return await member.answer
        finally:
            self._leave(cohort, member)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, and judge at once whoever is there."""
        self._is_closing = True
        for cohort in list(self._open.values()):
            self._close(cohort, DRAIN)
        self._tell()
        if self._judged:
            await asyncio.wait(self._judged, timeout=timeout_s)

    def _cohort_of(self, key: Hashable, size: int, size_bytes: int) -> _Cohort[S]:
        if self._is_closing:
            raise ShuttingDown("the service is shutting down; send the request to another replica")
        if self._bytes + size_bytes > self._limits.max_bytes:
            raise Overloaded(f"samples of {self._bytes} bytes wait for their cohorts; retry after Retry-After")
        if key in self._open:
            return self._open[key]
        if len(self._open) >= self._limits.max_open:
            raise Overloaded(f"{len(self._open)} cohorts wait for their samples; retry after Retry-After")
        cohort = self._open[key] = _Cohort(key, size)
        # In no context: the log lines of whoever is first are not about the cohort.
        loop, context = asyncio.get_running_loop(), Context()
        cohort.timer = loop.call_later(self._limits.timeout_s, self._close, cohort, DEADLINE, context=context)
        return cohort

    def _close(self, cohort: _Cohort[S], reason: str) -> None:
        """No more samples: judge those that are there."""
        self._forget(cohort)
        self._observer.observe_cohort_end(reason)
        judging = asyncio.get_running_loop().create_task(self._answer(cohort), context=Context())
        cohort.judging = judging
        self._judged.add(judging)
        judging.add_done_callback(self._judged.discard)

    def _forget(self, cohort: _Cohort[S]) -> None:
        del self._open[cohort.key]
        if cohort.timer:
            cohort.timer.cancel()
        self._tell()

    async def _answer(self, cohort: _Cohort[S]) -> None:
        async with self._turns:
            members = list(cohort.members)
            try:
                placed = await self._placed([member.sample for member in members], cohort.size)
            except asyncio.CancelledError:
                # Nobody waits any more, or what judges is leaving.
                _fail(members, ShuttingDown("the service shut down before this request was answered"))
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, they wait for it
                _fail(members, error)
            else:
                for member, one in zip(members, placed, strict=True):
                    if not member.answer.done():
                        member.answer.set_result(one)

    async def _placed(self, samples: Sequence[S], size: int) -> Sequence[Placed]:
        if len(samples) == 1:
            return [ALONE]
        placed = await self._judge(samples)
        return [replace(one, partial=len(samples) < size) for one in placed]

    def _leave(self, cohort: _Cohort[S], member: _Member[S]) -> None:
        cohort.members.remove(member)
        self._samples -= 1
        self._bytes -= member.size_bytes
        if not cohort.members:
            self._dissolve(cohort)
        self._tell()

    def _dissolve(self, cohort: _Cohort[S]) -> None:
        """Nobody waits for it any more."""
        if cohort.judging:
            cohort.judging.cancel()
        else:
            self._forget(cohort)

    def _tell(self) -> None:
        self._observer.observe_cohorts(len(self._open), self._samples)


def _fail(members: Sequence[_Member[S]], error: Exception) -> None:
    for member in members:
        if not member.answer.done():
            member.answer.set_exception(error)
