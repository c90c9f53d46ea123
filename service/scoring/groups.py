"""Cohorts: samples that arrive one by one and are scored together, when the cohort is full or its time has passed."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from service.scoring.models import ModelRegistry
from service.scoring.pipeline import Question
from service.scoring.ranking import NEUTRAL, GroupScore, score_group
from tinyrm.errors import Overloaded, ShuttingDown, Unavailable

S = TypeVar("S")

# Cohorts that are scored at once: a few keep an engine busy, and more would only need memory for their sequences.
MAX_SCORED_AT_ONCE = 4

FULL, DEADLINE, DRAIN = "full", "deadline", "drain"


@dataclass(frozen=True, slots=True)
class Sample:
    """One response of a cohort.

    fairness_key: as in `Pipeline.compare`.
    """

    question: Question
    response: str
    fairness_key: Hashable


async def score_cohort(registry: ModelRegistry, samples: Sequence[Sample]) -> list[GroupScore]:
    """Return the scores of samples that share a question.

    They were accepted when they joined their cohort, so they wait if the engine is busy.
    """
    first, responses = samples[0], [sample.response for sample in samples]
    result = await score_group(
        registry.resolve(first.question),
        first.question,
        responses,
        fairness_key=first.fairness_key,
        is_accepted=True,
    )
    return result.scores


@dataclass(frozen=True, slots=True)
class CohortLimits:
    """Limits of all cohorts.

    timeout_s: from a cohort's first sample until it is scored as it is.
    max_open: number of cohorts that wait for samples.
    max_bytes: size of all samples that wait or are being scored.
    max_wait_s: no new cohort is opened while a complete one has waited this long for the engine.
    """

    timeout_s: float
    max_open: int
    max_bytes: int
    max_wait_s: float = math.inf


class Observer(Protocol):
    """The metrics that cohorts update, methods of service.metrics.Metrics."""

    def observe_cohorts(self, open_cohorts: int, waiting_samples: int) -> None: ...

    def observe_cohort_end(self, reason: str) -> None: ...

    def observe_shed(self, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class Member(Generic[S]):
    """A sample in a cohort, and the future of its score."""

    sample: S
    size_bytes: int
    result: "asyncio.Future[GroupScore]"

    def complete(self, score: GroupScore) -> None:
        if not self.result.done():
            self.result.set_result(score)

    def fail(self, error: Exception) -> None:
        """Set an error, unless there is a result or an error already."""
        if not self.result.done():
            self.result.set_exception(error)


@dataclass(slots=True, eq=False)
class Cohort(Generic[S]):
    """The samples of one key, of which `size` are expected."""

    key: Hashable
    size: int
    timer: asyncio.TimerHandle | None = None
    scoring: "asyncio.Task[None] | None" = None
    members: list[Member[S]] = field(default_factory=list)


class Cohorts(Generic[S]):
    """All cohorts. Every accepted sample gets exactly one score or error, unless its request is cancelled.

    score: returns the scores of one cohort's samples, at least two, in their order.
    observer: the metrics to update.
    """

    def __init__(
        self, score: Callable[[Sequence[S]], Awaitable[Sequence[GroupScore]]], limits: CohortLimits, observer: Observer
    ) -> None:
        self._score, self._limits, self._observer = score, limits, observer
        self._open: dict[Hashable, Cohort[S]] = {}
        self._scoring: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(MAX_SCORED_AT_ONCE)
        # When the cohorts that wait to be scored were closed.
        self._complete: dict[Cohort[S], float] = {}
        self._samples = self._bytes = 0
        self._is_closing = False

    async def join(
        self, key: Hashable, sample: S, *, size: int, size_bytes: int, admit: Callable[[], None] = lambda: None
    ) -> GroupScore:
        """Return the sample's score when the cohort of `key` has `size` samples or its time has passed.

        admit: called before a sample opens a cohort; raises a subclass of Unavailable to refuse it. Later samples are
            accepted: the first ones wait for them.

        Raises Overloaded, ShuttingDown, and what `score` raises. A cancelled sample leaves its cohort.
        """
        try:
            cohort = self._find_or_open((key, size), size, size_bytes, admit)
        except Unavailable as error:
            self._observer.observe_shed(error.type)
            raise
        member = Member(sample, size_bytes, asyncio.get_running_loop().create_future())
        cohort.members.append(member)
        self._samples += 1
        self._bytes += size_bytes
        if len(cohort.members) == size:
            self._close(cohort, FULL)
        self._observe()
        try:
            return await member.result
        finally:
            cohort.members.remove(member)
            self._samples -= 1
            self._bytes -= member.size_bytes
            if not cohort.members:
                if cohort.scoring:
                    cohort.scoring.cancel()
                else:
                    self._forget(cohort)
            self._observe()

    async def drain(self, timeout_s: float) -> None:
        """Accept no new samples, and score all cohorts as they are now."""
        self._is_closing = True
        for cohort in list(self._open.values()):
            self._close(cohort, DRAIN)
        self._observe()
        if self._scoring:
            await asyncio.wait(self._scoring, timeout=timeout_s)

    def _find_or_open(self, key: Hashable, size: int, size_bytes: int, admit: Callable[[], None]) -> Cohort[S]:
        if self._is_closing:
            raise ShuttingDown("the service is shutting down; send the request to another replica")
        if self._bytes + size_bytes > self._limits.max_bytes:
            raise Overloaded(f"samples of {self._bytes} bytes wait for their cohorts; retry after Retry-After")
        if key in self._open:
            return self._open[key]
        if len(self._open) >= self._limits.max_open:
            raise Overloaded(f"{len(self._open)} cohorts wait for their samples; retry after Retry-After")
        waited_s = time.monotonic() - min(self._complete.values(), default=math.inf)
        if waited_s > self._limits.max_wait_s:
            raise Overloaded(f"complete cohorts have waited {waited_s:.1f} s for the engine; retry after Retry-After")
        admit()
        cohort = self._open[key] = Cohort(key, size)
        # An empty context: log lines about the cohort must not have the request id of its first sample.
        loop, context = asyncio.get_running_loop(), Context()
        cohort.timer = loop.call_later(self._limits.timeout_s, self._close, cohort, DEADLINE, context=context)
        return cohort

    def _close(self, cohort: Cohort[S], reason: str) -> None:
        """Accept no more samples in this cohort, and start to score it."""
        self._forget(cohort)
        self._observer.observe_cohort_end(reason)
        scoring = asyncio.get_running_loop().create_task(self._score_members(cohort), context=Context())
        cohort.scoring = scoring
        self._complete[cohort] = time.monotonic()
        self._scoring.add(scoring)

        def on_end(task: "asyncio.Task[None]") -> None:
            self._scoring.discard(task)
            self._complete.pop(cohort, None)

        scoring.add_done_callback(on_end)

    def _forget(self, cohort: Cohort[S]) -> None:
        del self._open[cohort.key]
        if cohort.timer:
            cohort.timer.cancel()
        self._observe()

    async def _score_members(self, cohort: Cohort[S]) -> None:
        async with self._turns:
            self._complete.pop(cohort, None)
            members = list(cohort.members)
            try:
                if len(members) == 1:
                    scores: Sequence[GroupScore] = [NEUTRAL]
                else:
                    is_partial = len(members) < cohort.size
                    scored = await self._score([member.sample for member in members])
                    scores = [replace(score, partial=is_partial) for score in scored]
            except asyncio.CancelledError:
                # All members were cancelled, or the service is shutting down.
                for member in members:
                    member.fail(ShuttingDown("the service shut down before this request had a result"))
                raise
            except Exception as error:  # noqa: BLE001  # of any kind: the members wait for a result
                for member in members:
                    member.fail(error)
            else:
                for member, score in zip(members, scores, strict=True):
                    member.complete(score)

    def _observe(self) -> None:
        self._observer.observe_cohorts(len(self._open), self._samples)
