"""`/v1/score`: responses that are read alone."""

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
from service.scoring.pipeline import ScoreResult
from service.scoring.responses import score_responses
from tinyrm.api import ResponseScore, ResponseTruncated, ScoreReply, ScoreRequest

router = APIRouter(tags=["score"])


@router.post("/v1/score", responses={**ERRORS})
async def score(body: ScoreRequest, request: Request, timeout_ms: TimeoutMs = None) -> ScoreReply:
    """How good one response is, or each of several, read alone. For a model that reads one response."""
    stats, question = get_stats(request), get_question(body)
    pipeline = get_state(request).registry.resolve(question)
    scored = await score_responses(
        pipeline,
        question,
        body.texts,
        fairness_key=get_fairness_key(request),
        deadline=get_deadline(timeout_ms),
    )
    costs = [result.cost for result in scored]
    stats.items = len(scored)
    for cost in costs:
        stats.add(cost.tokens, cost.stages)
    results = [response_score(result) for result in scored]
    return ScoreReply(results=results, model=pipeline.manifest.identity, usage=usage_of(costs))


def response_score(result: ScoreResult) -> ResponseScore:
    truncation = result.truncation
    return ResponseScore(
        raw=result.raw,
        score=result.standard,
        tokens=result.cost.tokens,
        truncated=ResponseTruncated(prompt=truncation.prompt, response=truncation.response_a),
    )
