"""`/v1/tokens`: how long texts are, without scoring them."""

import time

from fastapi import APIRouter, Request

from service.api.dependencies import (
    ERRORS,
    TimeoutMs,
    get_deadline,
    get_fairness_key,
    get_question,
    get_state,
    get_stats,
)
from tinyrm.api import DroppedTokens, TokensReply, TokensRequest

router = APIRouter(tags=["score"])


@router.post("/v1/tokens", responses={**ERRORS})
async def count_tokens(body: TokensRequest, request: Request, timeout_ms: TimeoutMs = None) -> TokensReply:
    """How many tokens texts have, and how many of them would be dropped to fit the model. Nothing is scored."""
    started = time.perf_counter()
    stats, question = get_stats(request), get_question(body)
    pipeline = get_state(request).registry.resolve(question)
    counts = await pipeline.count_tokens(
        question, body.responses, fairness_key=get_fairness_key(request), deadline=get_deadline(timeout_ms)
    )
    # What a template writes around a text is no token of an empty one.
    prompt, *responses = (
        count if text else 0
        for count, text in zip((counts.prompt, *counts.responses), (body.prompt, *body.responses), strict=True)
    )
    seconds = time.perf_counter() - started
    stats.items = 1
    stats.add(prompt + sum(responses), {"encode": seconds, "total": seconds})
    dropped_prompt, *dropped_responses = counts.dropped
    return TokensReply(
        model=pipeline.manifest.identity,
        max_tokens=pipeline.manifest.spec.max_tokens,
        prompt=prompt,
        responses=responses,
        longest_sequence=counts.longest_sequence,
        truncated=DroppedTokens(prompt=dropped_prompt, responses=dropped_responses),
    )
