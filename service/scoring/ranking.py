"""Groups of responses: the comparisons of a round all at once, then scores and order by `tinyrm.ranking`."""

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.scoring.pipeline import Answer, Pipeline
from tinyrm.api import GroupRequest, RewardsRequest
from tinyrm.errors import InvalidInput, first_of_group
from tinyrm.ranking import Matrix, Ranking, Strengths, mean_wins, sigmoid
from tinyrm.ranking import rank as rank_margins
from tinyrm.schedules import SCHEDULES, Pair, comparisons_needed

# Encoded at once: enough to keep an engine full, few enough to hold in memory.
WINDOW_PAIRS = 256


@dataclass(slots=True)
class Ranked:
    """Scores and order of the responses, and the comparisons they follow from."""

    ranking: Ranking
    answers: list[Answer] = field(default_factory=list)

    @property
    def order(self) -> list[int]:
        return self.ranking.order

    @property
    def strengths(self) -> Strengths:
        return self.ranking.strengths

    @property
    def probabilities(self) -> Matrix:
        return self.ranking.probabilities

    @property
    def cycle_rate(self) -> float | None:
        return self.ranking.cycle_rate

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
        self.margins = np.full((n, n), np.nan)
        self.answers: list[Answer] = []

    async def play(self) -> Ranked:
        schedule = SCHEDULES[self.request.strategy](len(participants(self.request)))
        pairs = next(schedule)
        while pairs:
            for at in range(0, len(pairs), WINDOW_PAIRS):
                some = pairs[at : at + WINDOW_PAIRS]
                self._record(some, await self._meet(some))
            try:
                pairs = schedule.send(sigmoid(self.margins))
            except StopIteration:
                break
        return Ranked(rank_margins(self.margins, ranked=len(self.request.responses)), self.answers)

    async def _meet(self, pairs: Sequence[Pair]) -> list[Answer]:
        started = time.perf_counter()
        encoded = await self.pipeline.encode(self.request, participants(self.request), pairs, self.swap)
        encode_s = (time.perf_counter() - started) / len(pairs)
        left_s = None if self.ends_at is None else max(0.0, self.ends_at - time.perf_counter())
        with first_of_group():
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self.pipeline.judge(
                            readings, self.swap, encode_s, flow=self.flow, timeout_s=left_s, patient=True
                        )
                    )
                    for readings in encoded
                ]
        return [task.result() for task in tasks]

    def _record(self, pairs: Sequence[Pair], answers: Sequence[Answer]) -> None:
        for (i, j), answer in zip(pairs, answers, strict=True):
            self.margins[i, j], self.margins[j, i] = answer.preference.margin, -answer.preference.margin
        self.answers += answers


def rewards_of(ranked: Ranked, request: RewardsRequest) -> list[float]:
    """Return one reward for each response, on the requested scale."""
    zero_mean = request.scale == "zero_mean"
    values = ranked.strengths.values if zero_mean else mean_wins(ranked.ranking.margins)[: len(request.responses)]
    rewards: list[float] = values.tolist()
    return rewards
