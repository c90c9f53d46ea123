"""/v1/compare and /v1/compare/batch."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from fastapi import APIRouter, Request, Response

from service.api.dependencies import ERRORS, TimeoutMs, get_fairness_key, get_state, get_stats, to_seconds
from service.scoring.models import ModelRegistry
from service.scoring.pipeline import Answer, Pipeline
from tinyrm.api import (
    BatchReply,
    BatchRequest,
    CompareReply,
    CompareRequest,
    ErrorBody,
    ErrorReply,
    InvalidItem,
    Truncated,
    Usage,
)
from tinyrm.deadline import Deadline
from tinyrm.errors import InvalidInput, TinyRMError

# Items of one call that are encoded or queued at once: enough to keep an engine full, few enough that a long list does
# not fill the queue for other requests.
WINDOW_ITEMS = 256

router = APIRouter(tags=["score"])


@router.post("/v1/compare", responses={**ERRORS})
async def compare(
    body: CompareRequest, request: Request, response: Response, timeout_ms: TimeoutMs = None
) -> CompareReply:
    """Which of two responses is better, and how surely."""
    stats = get_stats(request)
    stats.items = 1
    pipeline = get_state(request).registry.resolve(body)
    answer = await pipeline.compare(body, flow=get_fairness_key(request), timeout_s=to_seconds(timeout_ms))
    stats.add(answer.tokens, answer.stages)
    response.headers["Server-Timing"] = server_timing(answer.stages)
    return compare_reply(answer, pipeline)


@router.post("/v1/compare/batch", responses={**ERRORS})
async def compare_batch(body: BatchRequest, request: Request, timeout_ms: TimeoutMs = None) -> BatchReply:
    """Many comparisons in one call. Results are in the order of the items; an invalid item fails alone."""
    state, stats, fairness_key = get_state(request), get_stats(request), get_fairness_key(request)
    limit = state.settings.max_batch_items
    if len(body.items) > limit:
        raise InvalidInput(
            f"items: {len(body.items)} comparisons in one call, at most {limit} are taken; split the list"
        )
    stats.items = len(body.items)
    deadline = Deadline.after(to_seconds(timeout_ms))
    for pipeline in {id(p): p for p in needed_pipelines(body.items, state.registry)}.values():
        pipeline.refuse_if_busy(deadline.left_s())
    window = asyncio.Semaphore(WINDOW_ITEMS)

    async def compare_item(item: CompareRequest | InvalidItem) -> CompareReply | ErrorReply:
        if isinstance(item, InvalidItem):
            return ErrorReply(error=item.error)
        async with window:
            try:
                pipeline = state.registry.resolve(item)
                answer = await pipeline.compare(item, flow=fairness_key, timeout_s=deadline.left_s(), patient=True)
            except TinyRMError as error:
                return ErrorReply(error=ErrorBody.of(error))
        stats.add(answer.tokens, answer.stages)
        return compare_reply(answer, pipeline)

    results = await asyncio.gather(*map(compare_item, body.items))
    usages = [result.usage for result in results if isinstance(result, CompareReply)]
    usage = Usage(tokens=sum(usage.tokens for usage in usages), gflops=sum(usage.gflops for usage in usages))
    return BatchReply(results=results, usage=usage)


def needed_pipelines(items: Iterable[CompareRequest | InvalidItem], registry: ModelRegistry) -> Iterator[Pipeline]:
    """Yield the pipeline of each item; an item that names an unknown model fails alone, later."""
    for item in items:
        with suppress(TinyRMError):
            if isinstance(item, CompareRequest):
                yield registry.resolve(item)


def compare_reply(answer: Answer, pipeline: Pipeline) -> CompareReply:
    preference, cut = answer.preference, answer.truncation
    return CompareReply(
        preferred=preference.preferred,
        probability_a=preference.p_a,
        probability_b=preference.p_b,
        margin=preference.margin,
        model=pipeline.manifest.identity,
        usage=Usage(tokens=answer.tokens, gflops=answer.gflops),
        truncated=Truncated(prompt=cut.prompt, response_a=cut.response_a, response_b=cut.response_b),
    )


def server_timing(stages: Mapping[str, float]) -> str:
    """Return durations as the Server-Timing header has them, in milliseconds (W3C Server Timing)."""
    return ", ".join(f"{stage};dur={seconds * 1e3:.3f}" for stage, seconds in stages.items())
