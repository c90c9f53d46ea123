"""Many comparisons, one answer: who meets whom, all of a round at once, and what follows from it."""

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.scoring.pipeline import Answer, Pipeline
from tinyrm.api import GroupRequest, RewardsRequest
from tinyrm.errors import InvalidInput
from tinyrm.ranking import Matrix, Strengths, cycle_rate, fit
from tinyrm.schedules import SCHEDULES, Pair, comparisons_needed

# Encoded at once: enough to keep an engine full, few enough to hold in memory.
WINDOW_PAIRS = 256


@dataclass(slots=True)
class Ranked:
    """probabilities [n, n]: that i beats j, NaN where they did not meet; a reference is the last of the n.

    strengths: of the responses.
    """

    probabilities: Matrix
    strengths: Strengths
    answers: list[Answer] = field(default_factory=list)

    @property
    def cycle_rate(self) -> float | None:
        return cycle_rate(self.probabilities)

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def gflops(self) -> float:
        return sum(answer.gflops for answer in self.answers)

    @property
    def truncated_tokens(self) -> int:
        return sum(answer.truncation.total for answer in self.answers)


def participants(request: GroupRequest) -> list[str]:
    """Return the responses and, last, the reference if there is one."""
    return request.responses if request.reference is None else [*request.responses, request.reference]


async def rank(
    pipeline: Pipeline, request: GroupRequest, *, flow: Hashable, timeout_s: float | None, max_comparisons: int
) -> Ranked:
    """Raises InvalidInput and its kinds, Unavailable and its kinds, EngineFailed. One comparison's failure is that of
    all: strengths from what is left would not be those that were asked for."""
    n = len(participants(request))
    needed = comparisons_needed(request.strategy, n)
    if needed > max_comparisons:
        raise InvalidInput(
            f"{request.strategy} of {n} responses takes {needed} comparisons, at most {max_comparisons} are made in "
            "one call; send fewer responses or take strategy swiss"
        )
    pipeline.refuse_if_busy(timeout_s)
    with pipeline.begun():
        return await _Tournament(pipeline, request, flow, timeout_s).play()


class _Tournament:
    def __init__(self, pipeline: Pipeline, request: GroupRequest, flow: Hashable, timeout_s: float | None) -> None:
        self.pipeline, self.request, self.flow = pipeline, request, flow
        self.ends_at = None if timeout_s is None else time.perf_counter() + timeout_s
        self.swap = pipeline.swap_of(request)
        n = len(participants(request))
        self.probabilities = np.full((n, n), np.nan)
        self.answers: list[Answer] = []

    async def play(self) -> Ranked:
        schedule = SCHEDULES[self.request.strategy](len(participants(self.request)))
        pairs = next(schedule)
        while pairs:
            for at in range(0, len(pairs), WINDOW_PAIRS):
                some = pairs[at : at + WINDOW_PAIRS]
                self._record(some, await self._meet(some))
            try:
                pairs = schedule.send(self.probabilities)
            except StopIteration:
                break
        wins = np.nan_to_num(self.probabilities)
        return Ranked(self.probabilities, fit(wins, ranked=len(self.request.responses)), self.answers)

    async def _meet(self, pairs: Sequence[Pair]) -> list[Answer]:
        started = time.perf_counter()
        encoded = await self.pipeline.encode(self.request, participants(self.request), pairs, self.swap)
        encode_s = (time.perf_counter() - started) / len(pairs)
        left_s = None if self.ends_at is None else max(0.0, self.ends_at - time.perf_counter())
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self.pipeline.judge(
                            readings, self.swap, encode_s, flow=self.flow, timeout_s=left_s, patient=True
                        )
                    )
                    for readings in encoded
                ]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    def _record(self, pairs: Sequence[Pair], answers: Sequence[Answer]) -> None:
        for (i, j), answer in zip(pairs, answers, strict=True):
            self.probabilities[i, j], self.probabilities[j, i] = answer.preference.p_a, answer.preference.p_b
        self.answers += answers


def rewards_of(ranked: Ranked, request: RewardsRequest) -> list[float]:
    """One for each response, on the scale that was asked for."""
    values: list[float] = ranked.strengths.values.tolist()
    if request.scale == "zero_mean":
        return values
    met = ranked.probabilities[: len(request.responses)]
    count = (~np.isnan(met)).sum(axis=1)
    # Who met nobody is as good as anybody.
    means = np.where(count, np.nansum(met, axis=1) / np.maximum(count, 1), 0.5)
    return [float(mean) for mean in means]
