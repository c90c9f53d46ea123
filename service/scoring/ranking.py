"""Groups of responses: the comparisons of a round all at once, then scores and order by `tinyrm.ranking`."""

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from service.scoring.pipeline import NO_DEADLINE, CompareResult, Pipeline, Question
from tinyrm.comparison import Strategy
from tinyrm.deadline import Deadline
from tinyrm.errors import InvalidInput, first_of_group
from tinyrm.ranking import Ranking, expected_wins, mean_wins, rank, sigmoid
from tinyrm.schedules import SCHEDULES, Pair, comparisons_needed

# Encoded at once: enough to keep an engine busy, few enough to hold in memory.
WINDOW_PAIRS = 256
# Up to this many responses `score_group` compares all pairs; more are paired by their standings.
ROUND_ROBIN_RESPONSES = 32


@dataclass(frozen=True, slots=True)
class GroupScore:
    """The score of one response among the others of its group.

    reward: log-odds, mean 0 over the group
    score: mean probability to beat another response of the group
    tokens: the response's share of the group's cost
    partial: whether a member of the group was missing
    """

    reward: float
    score: float
    tokens: int = 0
    partial: bool = False


# Of a response without any to compare it with.
NEUTRAL = GroupScore(reward=0.0, score=0.5, partial=True)


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Scores and order of the responses of a group, and the comparisons they follow from."""

    ranking: Ranking
    comparisons: list[CompareResult]
    model: str

    @property
    def tokens(self) -> int:
        return sum(result.tokens for result in self.comparisons)

    @property
    def gflops(self) -> float:
        return sum(result.gflops for result in self.comparisons)

    @property
    def truncated_tokens(self) -> int:
        return sum(result.truncation.total for result in self.comparisons)

    @property
    def strengths(self) -> list[float]:
        """One for each response: log-odds, mean 0."""
        values: list[float] = self.ranking.strengths.values.tolist()
        return values

    @property
    def win_rates(self) -> list[float]:
        """One for each response: the mean probability to beat those it was compared with."""
        means: list[float] = mean_wins(self.ranking.margins)[: len(self.strengths)].tolist()
        return means

    @property
    def scores(self) -> list[GroupScore]:
        """One for each response; for groups without a reference."""
        strengths, margins = self.strengths, self.ranking.margins
        if len(strengths) < 2:
            return [NEUTRAL] * len(strengths)
        all_compared = np.isnan(margins).sum() == len(margins)  # all but the diagonal
        # A response that was compared with the best only has lost more than it would have lost among all.
        rates = self.win_rates if all_compared else expected_wins(self.ranking.strengths.values).tolist()
        share = self.tokens // len(strengths)
        return [GroupScore(reward, rate, share) for reward, rate in zip(strengths, rates, strict=True)]


async def rank_responses(
    pipeline: Pipeline,
    question: Question,
    responses: Sequence[str],
    *,
    strategy: Strategy = "round_robin",
    reference: str | None = None,
    max_comparisons: int | None = None,
    fairness_key: Hashable = None,
    deadline: Deadline = NO_DEADLINE,
) -> GroupResult:
    """Return scores and order of the responses.

    reference: the response that strategy `reference` compares each one with
    max_comparisons: of one call; None does not limit them
    Others as in `Pipeline.compare`.

    A comparison that fails fails the whole group: scores from the others would not be those of the request.
    Raises InvalidInput and its kinds, Unavailable and its kinds, EngineFailed.
    """
    texts = [*responses] if reference is None else [*responses, reference]
    n = len(texts)
    needed = comparisons_needed(strategy, n)
    if max_comparisons is not None and needed > max_comparisons:
        raise InvalidInput(
            f"{strategy} of {n} responses takes {needed} comparisons, at most {max_comparisons} are made in "
            "one call; send fewer responses or take strategy swiss"
        )
    pipeline.refuse_if_busy(deadline)
    with pipeline.active():
        swap = pipeline.choose_swap(question)

        async def compare(pairs: Sequence[Pair]) -> list[CompareResult]:
            started = time.perf_counter()
            encoded = await pipeline.encode(question, texts, pairs, swap)
            encode_s = (time.perf_counter() - started) / len(pairs)
            with first_of_group():
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(
                            pipeline.score(
                                sequences,
                                swap,
                                encode_s=encode_s,
                                fairness_key=fairness_key,
                                deadline=deadline,
                                wait_for_room=True,
                            )
                        )
                        for sequences in encoded
                    ]
            return [task.result() for task in tasks]

        margins = np.full((n, n), np.nan)
        comparisons: list[CompareResult] = []
        schedule = SCHEDULES[strategy](n)
        pairs = next(schedule)
        while pairs:
            for at in range(0, len(pairs), WINDOW_PAIRS):
                window = pairs[at : at + WINDOW_PAIRS]
                results = await compare(window)
                for (i, j), result in zip(window, results, strict=True):
                    margins[i, j], margins[j, i] = result.preference.margin, -result.preference.margin
                comparisons += results
            try:
                pairs = schedule.send(sigmoid(margins))
            except StopIteration:
                break
    return GroupResult(rank(margins, ranked=len(responses)), comparisons, pipeline.manifest.identity)


async def score_group(
    pipeline: Pipeline,
    question: Question,
    responses: Sequence[str],
    *,
    fairness_key: Hashable = None,
    deadline: Deadline = NO_DEADLINE,
) -> GroupResult:
    """Return the scores of a group of any size, by a strategy that suits its size. Raises as `rank_responses`."""
    n = len(responses)
    if n < 2:
        return GroupResult(rank(np.full((n, n), np.nan)), [], pipeline.manifest.identity)
    strategy: Strategy = "round_robin" if n <= ROUND_ROBIN_RESPONSES else "swiss"
    return await rank_responses(
        pipeline, question, responses, strategy=strategy, fairness_key=fairness_key, deadline=deadline
    )
