"""Cohorts: samples that arrive one by one and are scored together, when the cohort is full or its time has passed."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from service.scoring.group_watch import IncompleteLog, Pace
from service.scoring.models import ModelRegistry
from service.scoring.pipeline import Question
from service.scoring.ranking import NEUTRAL, GroupScore, score_group
from tinyrm.comparison import EmptyMode
from tinyrm.errors import NOT_ACCEPTED, NOT_FINISHED, IncompleteGroup, Overloaded, ShuttingDown, Unavailable

S = TypeVar("S")

# Cohorts that are scored at once: a few keep an engine busy, and more would only need memory for their sequences.
MAX_SCORED_AT_ONCE = 4
# A copy of a sample of the group just judged is answered from that group for so long: verl repeats samples to fill its
# last batch and sends all at once, while the next step with the same prompt has yet to generate its responses.
COPIES_S = 10.0
FULL, DEADLINE, DRAIN = "full", "deadline", "drain"


@dataclass(frozen=True, slots=True)
class Sample:
    """One response of a cohort. Samples of one cohort are equal if their responses are.

    fairness_key: as in `Pipeline.compare`.
    empty: as in `score_group`.
    """

    question: Question = field(compare=False)
    response: str
    fairness_key: Hashable = field(compare=False)
    empty: EmptyMode = "last"


async def score_cohort(registry: ModelRegistry, samples: Sequence[Sample]) -> list[GroupScore]:
    """Return the scores of samples that share a question.

    They were accepted when they joined their cohort, so they wait if the engine is busy.
    """
    first, responses = samples[0], [sample.response for sample in samples]
    result = await score_group(
        registry.resolve(first.question),
        first.question,
        responses,
        empty=first.empty,
        fairness_key=first.fairness_key,
        is_accepted=True,
    )
    return result.scores


@dataclass(frozen=True, slots=True)
class CohortLimits:
    """Limits of all cohorts.

    timeout_s: from a cohort's first sample until it is scored as it is, or refused.
    max_open: number of cohorts that wait for samples.
    max_bytes: size of all samples of cohorts that wait or are being scored, as if all were as long as the first.
    max_wait_s: no new cohort is opened if those that were opened before would take longer than this.
    """

    timeout_s: float
    max_open: int
    max_bytes: int
    max_wait_s: float = math.inf


@dataclass(frozen=True, slots=True)
class CohortRules:
    """How the samples of one cohort are treated; the same for all of them.

    size: how many are expected.
    cost: of judging a whole cohort, in any unit that all cohorts share.
    source: the API that the samples came by, for the log.
    scores_partial: whether an incomplete cohort is scored as it is when its time has passed, or refused.
    answers_copies: whether a sample equal to one of the group just judged gets that one's score, for COPIES_S.
    """

    size: int
    cost: float = 0.0
    source: str = ""
    scores_partial: bool = True
    answers_copies: bool = False


class Observer(Protocol):
    """The metrics that cohorts update, methods of service.metrics.Metrics."""

    def observe_cohorts(self, open_cohorts: int, waiting_samples: int) -> None: ...

    def observe_cohort_end(self, reason: str) -> None: ...

    def observe_shed(self, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class Member(Generic[S]):
    """A sample in a cohort, and the future of its score."""

    sample: S
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
    """The samples of one key.

    size_bytes: of all samples, as expected when the first one came.
    judged: each sample with its score, while copies of them are answered from this cohort; otherwise None.
    """

    key: Hashable
    rules: CohortRules
    size_bytes: int
    timer: asyncio.TimerHandle | None = None
    scoring: "asyncio.Task[None] | None" = None
    members: list[Member[S]] = field(default_factory=list)
    judged: "asyncio.Future[list[tuple[S, GroupScore]]] | None" = None
    has_ended: bool = False


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
        # Closed cohorts that copies are answered from, the oldest first.
        self._recent: dict[Hashable, Cohort[S]] = {}
        self._pace = Pace()
        # Of cohorts that are open or not judged yet.
        self._promised = 0.0
        self._samples = self._bytes = 0
        self._is_closing = False
        self._incomplete = IncompleteLog(limits.timeout_s, clock)

    async def join(
        self,
        key: Hashable,
        sample: S,
        rules: CohortRules,
        *,
        size_bytes: int,
        admit: Callable[[], None] | None = None,
    ) -> GroupScore:
        """Return the sample's score when the cohort of `key` is complete or its time has passed.

        admit: called before a sample opens a cohort; raises a subclass of Unavailable to refuse it. Later samples are
            accepted, whatever waits by then: the first ones wait for them. None for samples of an accepted list, which
            are refused for no wait at all.

        Raises Overloaded, ShuttingDown, IncompleteGroup, and what `score` raises. A cancelled sample leaves its cohort.
        """
        key = key, rules.size
        if copied := await self._find_copy(key, sample):
            return copied
        try:
            cohort = self._find_or_open(key, rules, size_bytes, admit)
        except Unavailable as error:
            self._observer.observe_shed(error.type)
            raise
        member = Member(sample, asyncio.get_running_loop().create_future())
        cohort.members.append(member)
        self._samples += 1
        if len(cohort.members) == rules.size:
            self._close(cohort, FULL)
        self._observe()
        try:
            return await member.result
        finally:
            cohort.members.remove(member)
            self._samples -= 1
            if not cohort.members:
                if cohort.scoring:
                    cohort.scoring.cancel()
                elif self._open.get(cohort.key) is cohort:
                    self._forget(cohort)
                    self._release(cohort)
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

    async def _find_copy(self, key: Hashable, sample: S) -> GroupScore | None:
        """Return the score of an equal sample of the group just judged, which may have to be awaited.

        Not while a cohort of this key is open: there, equal samples count separately.
        """
        cohort = self._recent.get(key)
        if key in self._open or not cohort or not cohort.judged:
            return None
        if not cohort.judged.done() and sample not in [member.sample for member in cohort.members]:
            return None
        judged = await asyncio.shield(cohort.judged)
        return next((score for other, score in judged if other == sample), None)

    def refuse_if_behind(self) -> None:
        """Raise Overloaded if the cohorts that were accepted before take too long for a new one."""
        wait_s = self._pace.estimate_s(self._promised)
        if wait_s > self._limits.max_wait_s:
            raise Overloaded(
                f"the groups that were accepted before take {wait_s:.0f} s, more than {self._limits.max_wait_s:g} s; "
                "retry after Retry-After"
            )

    def _find_or_open(
        self, key: Hashable, rules: CohortRules, size_bytes: int, admit: Callable[[], None] | None
    ) -> Cohort[S]:
        if self._is_closing:
            raise ShuttingDown(NOT_ACCEPTED)
        if key in self._open:
            return self._open[key]
        if len(self._open) >= self._limits.max_open:
            raise Overloaded(f"{len(self._open)} cohorts wait for their samples; retry after Retry-After")
        self._make_room(rules.size * size_bytes, size_bytes)
        if admit:
            self.refuse_if_behind()
            admit()
        cohort = self._open[key] = Cohort(key, rules, rules.size * size_bytes)
        self._promised += rules.cost
        self._bytes += cohort.size_bytes
        # An empty context: log lines about the cohort must not have the request id of its first sample.
        loop, context = asyncio.get_running_loop(), Context()
        cohort.timer = loop.call_later(self._limits.timeout_s, self._close, cohort, DEADLINE, context=context)
        return cohort

    def _make_room(self, expected_bytes: int, size_bytes: int) -> None:
        """Forget the oldest judged cohorts as far as needed. Raises Overloaded if a new cohort still has no room.

        expected_bytes: of the whole cohort, which may be alone even if that is too much.
        size_bytes: of its first sample.
        """
        while self._bytes + expected_bytes > self._limits.max_bytes and self._recent:
            self._forget_judged(next(iter(self._recent.values())))
        if size_bytes > self._limits.max_bytes or (
            self._bytes and self._bytes + expected_bytes > self._limits.max_bytes
        ):
            raise Overloaded(f"samples of {self._bytes} bytes wait for their cohorts; retry after Retry-After")

    def _close(self, cohort: Cohort[S], reason: str) -> None:
        """Accept no more samples in this cohort, and start to score it or refuse it."""
        self._forget(cohort)
        self._observer.observe_cohort_end(reason)
        if reason == DEADLINE:
            self._incomplete.warn(cohort.rules.source, len(cohort.members), cohort.rules.size)
        if reason == DRAIN:
            self._release(cohort)
            self._refuse(cohort, ShuttingDown("the service shut down before all samples of this group had arrived"))
            return
        if reason == DEADLINE and not cohort.rules.scores_partial:
            arrived = f"{len(cohort.members)} of {cohort.rules.size} samples of this group arrived"
            within = f"within {self._limits.timeout_s:g} s"
            self._release(cohort)
            self._refuse(cohort, IncompleteGroup(f"{arrived} {within}; send all of them again"))
            return
        self._judge(cohort, answers_copies=reason == FULL and cohort.rules.answers_copies)

    def _judge(self, cohort: Cohort[S], *, answers_copies: bool) -> None:
        """Start to score a closed cohort."""
        loop = asyncio.get_running_loop()
        if answers_copies:
            if older := self._recent.get(cohort.key):
                self._forget_judged(older)
            cohort.judged = loop.create_future()
            self._recent[cohort.key] = cohort
        scoring = loop.create_task(self._score_members(cohort), context=Context())
        cohort.scoring = scoring
        self._scoring.add(scoring)

        def on_end(task: "asyncio.Task[None]") -> None:
            self._scoring.discard(task)
            if task.cancelled():  # all members have left, or the service is shutting down
                self._fail(cohort, ShuttingDown(NOT_FINISHED))
            self._release(cohort)
            if cohort.judged:
                loop.call_later(COPIES_S, self._forget_judged, cohort, context=Context())

        scoring.add_done_callback(on_end)

    def _fail(self, cohort: Cohort[S], error: Exception) -> None:
        for member in cohort.members:
            member.fail(error)
        if cohort.judged:
            cohort.judged.set_exception(error)
            cohort.judged.exception()  # retrieved: there may be no copies
            if self._recent.get(cohort.key) is cohort:
                del self._recent[cohort.key]

    def _refuse(self, cohort: Cohort[S], error: Unavailable) -> None:
        for _ in cohort.members:
            self._observer.observe_shed(error.type)
        self._fail(cohort, error)

    def _forget(self, cohort: Cohort[S]) -> None:
        del self._open[cohort.key]
        if cohort.timer:
            cohort.timer.cancel()
        self._observe()

    def _release(self, cohort: Cohort[S]) -> None:
        """Give back the room of a cohort that has ended; that of its samples later if copies are answered from it."""
        cohort.has_ended = True
        self._promised -= cohort.rules.cost
        if self._recent.get(cohort.key) is not cohort:
            self._bytes -= cohort.size_bytes

    def _forget_judged(self, cohort: Cohort[S]) -> None:
        """Answer no more copies from this cohort."""
        if self._recent.get(cohort.key) is cohort:
            del self._recent[cohort.key]
            if cohort.has_ended:
                self._bytes -= cohort.size_bytes

    async def _score_members(self, cohort: Cohort[S]) -> None:
        async with self._turns:
            started, members = self._clock(), list(cohort.members)
            samples, is_partial = [member.sample for member in members], len(members) < cohort.rules.size
            if is_partial and not cohort.rules.scores_partial:
                gone = f"{cohort.rules.size - len(members)} of {cohort.rules.size} samples of this group were given up"
                self._refuse(cohort, IncompleteGroup(f"{gone} before it was judged; send all of them again"))
                return
            try:
                scores = await self._score(samples) if len(samples) > 1 else [NEUTRAL]
            except Exception as error:  # noqa: BLE001  # of any kind: the members wait for a result
                self._fail(cohort, error)
                return
            scores = [replace(score, partial=is_partial) for score in scores]
            for member, score in zip(members, scores, strict=True):
                member.complete(score)
            if cohort.judged:
                cohort.judged.set_result(list(zip(samples, scores, strict=True)))
            if not is_partial:
                self._pace.observe(cohort.rules.cost, started, self._clock())

    def _observe(self) -> None:
        self._observer.observe_cohorts(len(self._open), self._samples)
