"""`/v1/rank` and `/v1/rewards`: several responses to one prompt."""

import math
from collections.abc import Awaitable, Sequence

from fastapi import APIRouter, Request

from service.api.dependencies import (
    ERRORS,
    TimeoutMs,
    get_deadline,
    get_fairness_key,
    get_question,
    get_state,
    get_stats,
    usage_of,
)
from service.http.context import get_context
from service.scoring.cascade import rank_cascade
from service.scoring.ranking import GroupResult, fit_strategy, off_loop, rank_responses, rank_with_empty
from tinyrm.api import GroupRequest, RankReply, RankRequest, RewardsReply, RewardsRequest
from tinyrm.comparison import CASCADE_TOP

router = APIRouter(tags=["score"])


@router.post("/v1/rank", responses={**ERRORS})
async def rank(body: RankRequest, request: Request, timeout_ms: TimeoutMs = None) -> RankReply:
    """The order of several responses, with their strengths and standard errors."""
    result = await rank_group(body, request, timeout_ms)
    cycle_rate = await off_loop(len(body.responses), lambda: result.ranking.cycle_rate)
    matrix = None
    if body.win_matrix:
        matrix = [[None if math.isnan(p) else p for p in row] for row in result.ranking.probabilities.tolist()]
    return RankReply(
        order=result.ranking.order,
        strengths=result.strengths,
        standard_errors=result.ranking.strengths.standard_errors.tolist(),
        cycle_rate=cycle_rate,
        win_matrix=matrix,
        comparisons=result.comparisons,
        sets=result.sets,
        model=result.model,
        usage=usage_of(result.costs),
        truncated_tokens=result.truncated_tokens,
    )


@router.post("/v1/rewards", responses={**ERRORS})
async def rewards(body: RewardsRequest, request: Request, timeout_ms: TimeoutMs = None) -> RewardsReply:
    """A reward for each of several responses, from comparisons between them."""
    result = await rank_group(body, request, timeout_ms)
    values = result.strengths if body.scale == "zero_mean" else result.win_rates
    if body.has_nothing_to_compare:
        get_context(request.scope).is_partial = True
        get_state(request).registry.metrics.observe_partial("rewards")
    return RewardsReply(
        rewards=values,
        partial=body.has_nothing_to_compare,
        sets=result.sets,
        model=result.model,
        usage=usage_of(result.costs),
    )


async def rank_group(body: GroupRequest, request: Request, timeout_ms: int | None) -> GroupResult:
    state, stats, question = get_state(request), get_stats(request), get_question(body)
    max_comparisons = state.settings.max_batch_items
    fairness_key, deadline = get_fairness_key(request), get_deadline(timeout_ms)

    strategy = None if body.strategy == "cascade" else body.strategy
    cascade = state.registry.resolve_cascade(question) if body.strategy == "cascade" else None
    pipeline = cascade.alone if cascade else state.registry.resolve(question)

    def judge(responses: Sequence[str]) -> Awaitable[GroupResult]:
        if cascade:
            return rank_cascade(
                cascade,
                question,
                responses,
                top=min(body.top or CASCADE_TOP, len(responses)),
                max_comparisons=max_comparisons,
                fairness_key=fairness_key,
                deadline=deadline,
            )
        return rank_responses(
            pipeline,
            question,
            responses,
            strategy=strategy or fit_strategy(len(responses), max_comparisons),
            reference=body.reference,
            max_comparisons=max_comparisons,
            fairness_key=fairness_key,
            deadline=deadline,
        )

    result = await rank_with_empty(pipeline, question, body.responses, body.empty, judge)
    stats.items = len(result.costs)
    for cost in result.costs:
        stats.add(cost.tokens, cost.stages)
    return result
