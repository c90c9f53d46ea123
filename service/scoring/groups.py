"""Cohorts: samples that arrive one by one and are scored together, when the cohort is full or its time has passed."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import structlog

from service.scoring.models import ModelRegistry
from service.scoring.pipeline import Question
from service.scoring.ranking import NEUTRAL, GroupScore, score_group
from service.settings import PREFIX
from tinyrm.errors import NOT_ACCEPTED, NOT_FINISHED, IncompleteGroup, Overloaded, ShuttingDown, Unavailable

S = TypeVar("S")

log = structlog.get_logger("tinyrm")

# Cohorts that are scored at once: a few keep an engine busy, and more would only need memory for their sequences.
MAX_SCORED_AT_ONCE = 4
# A trainer whose samples do not meet has hundreds of incomplete cohorts in each step; one line names them all.
WARN_EVERY_S = 60.0

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
    scores_partial: whether an incomplete cohort is scored as it is when its time has passed, or refused.
    """

    timeout_s: float
    max_open: int
    max_bytes: int
    max_wait_s: float = math.inf
    scores_partial: bool = True


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
    """The samples of one key, of which `size` are expected.

    source: the API that they came by, for the log.
    """

    key: Hashable
    size: int
    source: str = ""
    timer: asyncio.TimerHandle | None = None
    scoring: "asyncio.Task[None] | None" = None
    members: list[Member[S]] = field(default_factory=list)


class Cohorts(Generic[S]):
    """All cohorts. Every accepted sample gets exactly one score or error, unless its request is cancelled.

    score: returns the scores of one cohort's samples, at least two, in their order.
    observer: the metrics to update.
    clock: seconds, for the pauses between warnings.
    """

    def __init__(
        self,
        score: Callable[[Sequence[S]], Awaitable[Sequence[GroupScore]]],
        limits: CohortLimits,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._score, self._limits, self._observer, self._clock = score, limits, observer, clock
        self._open: dict[Hashable, Cohort[S]] = {}
        self._scoring: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(MAX_SCORED_AT_ONCE)
        # When the cohorts that wait to be scored were closed.
        self._complete: dict[Cohort[S], float] = {}
        self._samples = self._bytes = 0
        self._is_closing = False
        # By source: when there was a warning, and how many incomplete cohorts there were since.
        self._warned_at: dict[str, float] = {}
        self._partial_since: dict[str, int] = {}

    async def join(
        self,
        key: Hashable,
        sample: S,
        *,
        size: int,
        size_bytes: int,
        admit: Callable[[], None] = lambda: None,
        source: str = "",
    ) -> GroupScore:
        """Return the sample's score when the cohort of `key` has `size` samples or its time has passed.

        admit: called before a sample opens a cohort; raises a subclass of Unavailable to refuse it. Later samples are
            accepted: the first ones wait for them.
        source: the API that the sample came by, for the log.

        Raises Overloaded, ShuttingDown, IncompleteGroup, and what `score` raises. A cancelled sample leaves its cohort.
        """
        try:
            cohort = self._find_or_open((key, size), size, size_bytes, admit, source)
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
                elif self._open.get(cohort.key) is cohort:
                    self._forget(cohort)
            self._observe()

    async def drain(self, timeout_s: float) -> None:
        """Accept no new samples, refuse those whose cohort is incomplete, and score complete cohorts.

        A trainer sends a refused sample again, to the next process; a score that compares it with a part of its group,
        or with nothing, it would keep.
        """
        self._is_closing = True
        for cohort in list(self._open.values()):
            self._close(cohort, DRAIN)
        self._observe()
        if self._scoring:
            await asyncio.wait(self._scoring, timeout=timeout_s)

    def _find_or_open(
        self, key: Hashable, size: int, size_bytes: int, admit: Callable[[], None], source: str
    ) -> Cohort[S]:
        if self._is_closing:
            raise ShuttingDown(NOT_ACCEPTED)
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
        cohort = self._open[key] = Cohort(key, size, source)
        # An empty context: log lines about the cohort must not have the request id of its first sample.
        loop, context = asyncio.get_running_loop(), Context()
        cohort.timer = loop.call_later(self._limits.timeout_s, self._close, cohort, DEADLINE, context=context)
        return cohort

    def _close(self, cohort: Cohort[S], reason: str) -> None:
        """Accept no more samples in this cohort, and start to score it or refuse it."""
        self._forget(cohort)
        self._observer.observe_cohort_end(reason)
        if reason == DEADLINE:
            self._warn(cohort)
        if reason == DRAIN:
            self._refuse(cohort, ShuttingDown("the service shut down before all samples of this group had arrived"))
            return
        if reason == DEADLINE and not self._limits.scores_partial:
            arrived = f"{len(cohort.members)} of {cohort.size} samples of this group arrived"
            within = f"within {self._limits.timeout_s:g} s"
            self._refuse(cohort, IncompleteGroup(f"{arrived} {within}; send all of them again"))
            return
        scoring = asyncio.get_running_loop().create_task(self._score_members(cohort), context=Context())
        cohort.scoring = scoring
        self._complete[cohort] = time.monotonic()
        self._scoring.add(scoring)

        def on_end(task: "asyncio.Task[None]") -> None:
            self._scoring.discard(task)
            self._complete.pop(cohort, None)

        scoring.add_done_callback(on_end)

    def _refuse(self, cohort: Cohort[S], error: Unavailable) -> None:
        for member in cohort.members:
            self._observer.observe_shed(error.type)
            member.fail(error)

    def _warn(self, cohort: Cohort[S]) -> None:
        """Log that cohorts are incomplete, at most once in WARN_EVERY_S for each source: trainers do not see it."""
        count = self._partial_since[cohort.source] = self._partial_since.get(cohort.source, 0) + 1
        now = self._clock()
        if now - self._warned_at.get(cohort.source, -WARN_EVERY_S) < WARN_EVERY_S:
            return
        self._warned_at[cohort.source], self._partial_since[cohort.source] = now, 0
        log.warning(
            "incomplete groups",
            dialect=cohort.source,
            groups=count,
            samples=len(cohort.members),
            group_size=cohort.size,
            advice=f"{len(cohort.members)} of {cohort.size} samples arrived within {self._limits.timeout_s:g} s: set "
            f"{PREFIX}GROUP_SIZE or ?group_size= to the trainer's samples of one prompt, or raise "
            f"{PREFIX}COHORT_TIMEOUT_S; a client with a limit of connections must send groups together",
        )

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
                    member.fail(ShuttingDown(NOT_FINISHED))
                raise
            except Exception as error:  # noqa: BLE001  # of any kind: the members wait for a result
                for member in members:
                    member.fail(error)
            else:
                for member, score in zip(members, scores, strict=True):
                    member.complete(score)

    def _observe(self) -> None:
        self._observer.observe_cohorts(len(self._open), self._samples)
