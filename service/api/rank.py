"""/v1/rank and /v1/rewards: several responses to one prompt."""

import math

from fastapi import APIRouter, Request

from service.api.dependencies import ERRORS, TimeoutMs, get_fairness_key, get_state, get_stats, to_seconds
from service.scoring.pipeline import Pipeline
from service.scoring.ranking import Ranked, rewards_of
from service.scoring.ranking import rank as rank_responses
from tinyrm.api import GroupRequest, RankReply, RankRequest, RewardsReply, RewardsRequest, Usage

router = APIRouter(tags=["score"])


@router.post("/v1/rank", responses={**ERRORS})
async def rank(body: RankRequest, request: Request, timeout_ms: TimeoutMs = None) -> RankReply:
    """The order of several responses, with their strengths and standard errors."""
    ranked, pipeline = await rank_group(body, request, timeout_ms)
    matrix = [[None if math.isnan(p) else p for p in row] for row in ranked.probabilities.tolist()]
    return RankReply(
        order=ranked.order,
        strengths=ranked.strengths.values.tolist(),
        standard_errors=ranked.strengths.standard_errors.tolist(),
        cycle_rate=ranked.cycle_rate,
        win_matrix=matrix if body.win_matrix else None,
        comparisons=len(ranked.answers),
        model=pipeline.manifest.identity,
        usage=Usage(tokens=ranked.tokens, gflops=ranked.gflops),
        truncated_tokens=ranked.truncated_tokens,
    )


@router.post("/v1/rewards", responses={**ERRORS})
async def rewards(body: RewardsRequest, request: Request, timeout_ms: TimeoutMs = None) -> RewardsReply:
    """A reward for each of several responses, from comparisons among them."""
    ranked, pipeline = await rank_group(body, request, timeout_ms)
    usage = Usage(tokens=ranked.tokens, gflops=ranked.gflops)
    return RewardsReply(rewards=rewards_of(ranked, body), model=pipeline.manifest.identity, usage=usage)


async def rank_group(body: GroupRequest, request: Request, timeout_ms: int | None) -> tuple[Ranked, Pipeline]:
    state, stats = get_state(request), get_stats(request)
    pipeline = state.registry.resolve(body)
    ranked = await rank_responses(
        pipeline,
        body,
        flow=get_fairness_key(request),
        timeout_s=to_seconds(timeout_ms),
        max_comparisons=state.settings.max_batch_items,
    )
    stats.items = len(ranked.answers)
    for answer in ranked.answers:
        stats.add(answer.tokens, answer.stages)
    return ranked, pipeline
