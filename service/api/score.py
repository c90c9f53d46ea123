"""`/v1/score`: responses whose scores depend on no other response."""

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
    """How good one response is, or each of several, whatever the others are. For a model that `scores_alone`."""
    stats, question = get_stats(request), get_question(body)
    pipeline = get_state(request).registry.resolve(question)
    scored = await score_responses(
        pipeline,
        question,
        body.texts,
        fairness_key=get_fairness_key(request),
        deadline=get_deadline(timeout_ms),
    )
    stats.items = len(scored.scores)
    for cost in scored.costs:
        stats.add(cost.tokens, cost.stages)
    results = [
        response_score(result, is_empty=pipeline.is_empty(question, text))
        for result, text in zip(scored.scores, body.texts, strict=True)
    ]
    return ScoreReply(results=results, model=pipeline.manifest.identity, usage=usage_of(scored.costs))


def response_score(result: ScoreResult, *, is_empty: bool) -> ResponseScore:
    truncation = result.truncation
    return ResponseScore(
        raw=result.raw,
        score=result.standard,
        tokens=result.tokens,
        truncated=ResponseTruncated(prompt=truncation.prompt, response=truncation.response_a),
        empty=is_empty,
    )
