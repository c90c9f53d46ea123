"""Groups of responses: compare them in rounds, or read each once, and compute their order with `tinyrm.ranking`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.scoring.pipeline import NO_DEADLINE, CompareResult, Cost, Pipeline, Question, ScoreResult
from service.scoring.responses import read_responses
from tinyrm.chat import BLANK
from tinyrm.comparison import EMPTY_LOG_ODDS, EmptyMode, Strategy, SwapMode
from tinyrm.confidence import Temperature
from tinyrm.deadline import Deadline
from tinyrm.encoding import Encoding, Tokenized
from tinyrm.errors import InvalidInput, first_of_group
from tinyrm.ranking import (
    Ranking,
    expected_wins,
    mean_wins,
    place_last,
    rank,
    rank_scores,
    sigmoid,
)
from tinyrm.schedules import SCHEDULES, Pair, comparisons_needed

# Pairs whose sequences are made at once: enough to keep an engine busy, few enough for the memory.
WINDOW_PAIRS = 256
# `score_group` compares all pairs of up to this many responses; larger groups are paired by their scores so far.
ROUND_ROBIN_RESPONSES = 32
# Responses that are ranked in the event loop, in some 10 ms; a thousand take seconds.
MAX_IN_LOOP = 128
# About as many as in English; an estimate needs no more.
CHARACTERS_PER_TOKEN = 4


T = TypeVar("T")
P = ParamSpec("P")


class Limits(TypedDict):
    """Arguments that are handed on."""

    fairness_key: Hashable
    deadline: Deadline
    is_accepted: bool


@dataclass(frozen=True, slots=True)
class GroupScore:
    """The score of one response: among the others of its group, or alone if its model scores it alone.

    reward: log-odds, with mean 0 over the group. Alone: `score` of /v1/score, or the logit if the bundle has no scale.
    score: mean probability to beat another response of the group. Alone: probability to beat the mean held-out one.
    tokens: the response's share of the group's cost.
    partial: whether a member of the group was missing.
    """

    reward: float
    score: float
    tokens: int = 0
    partial: bool = False


# The score of a response without comparisons.
NEUTRAL = GroupScore(reward=0.0, score=0.5, partial=True)


def cap_empty(pipeline: Pipeline, result: ScoreResult, temperature: Temperature) -> ScoreResult:
    """Return the score of an empty response that was read alone: far below the mean of held-out responses, or less.

    That is 3 standard deviations, or log-odds where the bundle has no scale.
    """
    scale = pipeline.manifest.score_scale
    limit = scale.mean - EMPTY_LOG_ODDS * scale.std if scale else -EMPTY_LOG_ODDS * temperature.value
    if result.logit <= limit:
        return result
    return pipeline.make_score(limit, result.truncation, result.tokens, temperature)


def score_alone(result: ScoreResult) -> GroupScore:
    """Return the score of a response that was read alone; it depends on no other response."""
    reward = result.logit if result.standard is None else result.standard
    return GroupScore(reward, float(sigmoid(np.array(result.log_odds))), result.tokens)


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Scores and order of a group's responses, and what they cost.

    model: name@revision; of a cascade both, joined by +.
    comparisons: of a model that reads pairs.
    responses: of a model whose scores depend on no other response; the reference is the last one.
    costs: of each item of the queue.
    sets: sequences that held the responses of a model that reads sets; otherwise None.
    """

    ranking: Ranking
    model: str
    comparisons: int = 0
    responses: Sequence[ScoreResult] = ()
    costs: Sequence[Cost] = ()
    truncated_tokens: int = 0
    sets: int | None = None

    @property
    def tokens(self) -> int:
        return sum(cost.tokens for cost in self.costs)

    @property
    def strengths(self) -> list[float]:
        """The strength of each response: log-odds, with mean 0."""
        values: list[float] = self.ranking.strengths.values.tolist()
        return values

    @property
    def win_rates(self) -> list[float]:
        """The mean probability of each response to beat those that it was compared with.

        In a cascade, where two models give the margins, to beat any other one by its strength: in the order of these.
        """
        if self.comparisons and self.responses:
            rates: list[float] = expected_wins(self.ranking.strengths.values).tolist()
            return rates
        means: list[float] = mean_wins(self.ranking.margins)[: len(self.strengths)].tolist()
        return means

    @property
    def scores(self) -> list[GroupScore]:
        """The score of each response; for groups without a reference."""
        if self.responses:
            return [score_alone(result) for result in self.responses]
        strengths, margins = self.strengths, self.ranking.margins
        if len(strengths) < 2:
            return [NEUTRAL] * len(strengths)
        all_compared = np.isnan(margins).sum() == len(margins)  # all but the diagonal
        # Otherwise a response that met only the best ones would score too low: take its expected wins against all.
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
    is_accepted: bool = False,
) -> GroupResult:
    """Return scores and order of the responses, none of which is an empty text.

    strategy: which pairs a model that reads pairs compares. Any other model reads each response once.
    reference: the response with which strategy `reference` compares each one.
    max_comparisons: limit of one call; None for no limit.
    fairness_key, deadline: as in `Pipeline.compare`.
    is_accepted: for responses that were accepted before, so they are not refused because the engine is busy.

    If a comparison fails, the whole group fails: scores from the remaining comparisons would differ.
    Raises InvalidInput, Unavailable and their subclasses, EngineFailed.
    """
    texts = [*responses] if reference is None else [*responses, reference]
    if not texts:
        pipeline.resolve(question, texts)
        return GroupResult(rank(np.full((0, 0), np.nan)), pipeline.manifest.identity)
    if pipeline.reads != "pair":
        read = await read_responses(
            pipeline, question, texts, fairness_key=fairness_key, deadline=deadline, is_accepted=is_accepted
        )
        temperature = pipeline.temperature(question).value
        return GroupResult(
            await off_loop(len(texts), rank_by_scores, read.logits, temperature, len(responses)),
            pipeline.manifest.identity,
            responses=read.scores,
            costs=read.costs,
            truncated_tokens=read.truncated_tokens,
            sets=read.sets,
        )
    n = len(texts)
    needed = comparisons_needed(strategy, n)
    refuse_too_many(strategy, n, max_comparisons)
    if not is_accepted:
        pipeline.refuse_if_busy(deadline, fairness_key)
    swap = pipeline.choose_swap(question)
    with pipeline.active():
        started = time.perf_counter()
        tokenized = await pipeline.texts.tokenize(
            pipeline.resolve(question, texts), fairness_key=fairness_key, deadline=deadline
        )
        # Each comparison has a share of it, as if it had encoded its own texts.
        tokenize_s = (time.perf_counter() - started) / max(1, needed)
        margins = np.full((n, n), np.nan)
        comparisons: list[CompareResult] = []
        schedule = SCHEDULES[strategy](n)
        pairs = next(schedule, [])
        while pairs:
            for at in range(0, len(pairs), WINDOW_PAIRS):
                window = pairs[at : at + WINDOW_PAIRS]
                results = await compare_pairs(
                    pipeline,
                    tokenized,
                    window,
                    swap,
                    pipeline.temperature(question),
                    tokenize_s=tokenize_s,
                    fairness_key=fairness_key,
                    deadline=deadline,
                )
                for (i, j), result in zip(window, results, strict=True):
                    margins[i, j], margins[j, i] = result.preference.margin, -result.preference.margin
                comparisons += results
            try:
                pairs = schedule.send(sigmoid(margins))
            except StopIteration:
                break
    return GroupResult(
        await off_loop(n, partial(rank, ranked=len(responses)), margins),
        pipeline.manifest.identity,
        comparisons=len(comparisons),
        costs=[comparison.cost for comparison in comparisons],
        truncated_tokens=sum(comparison.truncation.total for comparison in comparisons),
    )


def refuse_too_many(strategy: Strategy, n: int, max_comparisons: int | None) -> None:
    """Raise InvalidInput if one call may not compare n responses by this strategy."""
    needed = comparisons_needed(strategy, n)
    if max_comparisons is not None and needed > max_comparisons:
        raise InvalidInput(
            f"{strategy} of {n} responses takes {needed} comparisons, at most {max_comparisons} are allowed in "
            f"one call; send fewer responses{' or use strategy swiss' if strategy == 'round_robin' else ''}"
        )


async def off_loop(n: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of work whose time grows with the cube of n: in a thread, if that is long."""
    if n <= MAX_IN_LOOP:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def rank_by_scores(logits: NDArray[np.float64], temperature: float, ranked: int) -> Ranking:
    """Return the ranking of the first `ranked` responses; one more is a reference, with which each is compared."""
    ranking = rank_scores(logits, temperature, ranked=ranked)
    if ranked == len(logits):
        return ranking
    margins = np.full_like(ranking.margins, np.nan)
    margins[:, ranked:], margins[ranked:, :] = ranking.margins[:, ranked:], ranking.margins[ranked:, :]
    np.fill_diagonal(margins, np.nan)
    return replace(ranking, margins=margins)


async def compare_pairs(
    pipeline: Pipeline,
    tokenized: Tokenized,
    pairs: Sequence[Pair],
    swap: SwapMode,
    temperature: Temperature,
    *,
    tokenize_s: float,
    fairness_key: Hashable,
    deadline: Deadline,
) -> list[CompareResult]:
    """Score the pairs concurrently, and return their results. The first error cancels the others.

    pairs: indices into the tokenized responses.
    tokenize_s: share of one pair in the seconds of tokenizing.
    """
    started = time.perf_counter()
    encoded = await pipeline.texts.assemble(
        tokenized, pairs, swap=swap != "off", fairness_key=fairness_key, deadline=deadline
    )
    encode_s = tokenize_s + (time.perf_counter() - started) / len(pairs)

    def score(sequences: tuple[Encoding, ...]) -> Coroutine[None, None, CompareResult]:
        return pipeline.score(
            sequences,
            swap,
            temperature,
            encode_s=encode_s,
            fairness_key=fairness_key,
            deadline=deadline,
            wait_for_room=True,
        )

    with first_of_group():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score(sequences)) for sequences in encoded]
    return [task.result() for task in tasks]


async def rank_with_empty(
    pipeline: Pipeline,
    question: Question,
    responses: Sequence[str],
    empty: EmptyMode,
    judge: Callable[[Sequence[str]], Awaitable[GroupResult]],
) -> GroupResult:
    """Return the result of `judge`; with `last`, it gets no empty responses, and they are placed below all others."""
    places = [i for i, response in enumerate(responses) if pipeline.is_empty(question, response)]
    if empty == "judge" or not places:
        return await judge([response or BLANK for response in responses])
    result = await judge([response for i, response in enumerate(responses) if i not in places])
    return replace(result, ranking=await off_loop(len(responses), place_last, result.ranking, places))


def fit_strategy(n: int, max_comparisons: int) -> Strategy:
    """Return how n responses are compared in one call if its client has not chosen."""
    return "round_robin" if comparisons_needed("round_robin", n) <= max_comparisons else "swiss"


def choose_strategy(n: int) -> Strategy:
    """Return how a group of n responses is compared without a choice of its client."""
    return "round_robin" if n <= ROUND_ROBIN_RESPONSES else "swiss"


def estimate_tokens(
    pipeline: Pipeline, question: Question, n: int, *, prompt_characters: int, response_characters: int
) -> float:
    """Return about how many tokens it takes to judge n responses that are as long as one of them."""
    prompt, response = prompt_characters / CHARACTERS_PER_TOKEN, response_characters / CHARACTERS_PER_TOKEN
    if pipeline.reads != "pair":
        return prompt + n * response
    orders = 1 if pipeline.choose_swap(question) == "off" else 2
    sequences = orders * comparisons_needed(choose_strategy(n), n)
    return sequences * min(prompt + 2 * response, pipeline.manifest.spec.max_tokens)


async def score_group(
    pipeline: Pipeline,
    question: Question,
    responses: Sequence[str],
    *,
    empty: EmptyMode = "last",
    max_comparisons: int | None = None,
    fairness_key: Hashable = None,
    deadline: Deadline = NO_DEADLINE,
    is_accepted: bool = False,
) -> GroupResult:
    """Return the scores of a group of any size, with a strategy for its size. Raises as `rank_responses` does.

    empty: whether responses with nothing but white space and special tokens are last, or judged like the others. If the
        model scores responses alone, last means `cap_empty`, which depends on no other response either.
    """
    n = len(responses)
    if n < 2 and (not n or not pipeline.scores_alone):
        return GroupResult(rank(np.full((n, n), np.nan)), pipeline.manifest.identity)
    limits: Limits = {"fairness_key": fairness_key, "deadline": deadline, "is_accepted": is_accepted}
    if not pipeline.scores_alone:
        return await rank_with_empty(
            pipeline,
            question,
            responses,
            empty,
            lambda judged: rank_responses(
                pipeline,
                question,
                judged,
                strategy=choose_strategy(len(judged)),
                max_comparisons=max_comparisons,
                **limits,
            ),
        )
    read = await read_responses(pipeline, question, [response or BLANK for response in responses], **limits)
    temperature = pipeline.temperature(question)
    scores = [
        cap_empty(pipeline, score, temperature) if empty == "last" and pipeline.is_empty(question, response) else score
        for response, score in zip(responses, read.scores, strict=True)
    ]
    logits = np.array([score.logit for score in scores])
    ranking = rank_scores(logits, temperature.value, has_errors=False)
    return GroupResult(
        ranking, pipeline.manifest.identity, responses=scores, costs=read.costs, truncated_tokens=read.truncated_tokens
    )
