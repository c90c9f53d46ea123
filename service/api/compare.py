"""`/v1/compare` and `/v1/compare/batch`: one comparison, and a list of them."""

from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

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
from service.scoring.batch import BatchItem, compare_items
from service.scoring.pipeline import CompareResult, Cost
from tinyrm.api import (
    BatchReply,
    BatchRequest,
    CompareReply,
    CompareRequest,
    ErrorBody,
    ErrorReply,
    Orders,
    Truncated,
)
from tinyrm.errors import InvalidInput

router = APIRouter(tags=["score"])


@router.post("/v1/compare", responses={**ERRORS})
async def compare(
    body: CompareRequest, request: Request, response: Response, timeout_ms: TimeoutMs = None
) -> CompareReply:
    """Which of two responses is better, and with what probability."""
    stats, question = get_stats(request), get_question(body)
    stats.items = 1
    pipeline = get_state(request).registry.resolve(question)
    result = await pipeline.compare(
        question,
        body.response_a,
        body.response_b,
        fairness_key=get_fairness_key(request),
        deadline=get_deadline(timeout_ms),
    )
    stats.add(result.cost.tokens, result.cost.stages)
    response.headers["Server-Timing"] = server_timing(result.cost.stages)
    return compare_reply(result)


@router.post("/v1/compare/batch", responses={**ERRORS})
async def compare_batch(body: BatchRequest, request: Request, timeout_ms: TimeoutMs = None) -> BatchReply:
    """Many comparisons in one call. Results have the order of the items; an invalid item fails alone."""
    state, stats = get_state(request), get_stats(request)
    limit = state.settings.max_batch_items
    if len(body.items) > limit:
        raise InvalidInput(
            f"items: {len(body.items)} comparisons in one call, at most {limit} are accepted; split the list"
        )
    stats.items = len(body.items)
    valid = [
        BatchItem(get_question(item), item.response_a, item.response_b)
        for item in body.items
        if isinstance(item, CompareRequest)
    ]
    compared = iter(
        await compare_items(
            state.registry, valid, fairness_key=get_fairness_key(request), deadline=get_deadline(timeout_ms)
        )
    )
    results: list[CompareReply | ErrorReply] = []
    costs: list[Cost] = []
    for item in body.items:
        result = next(compared) if isinstance(item, CompareRequest) else item.error
        if isinstance(result, CompareResult):
            stats.add(result.cost.tokens, result.cost.stages)
            costs.append(result.cost)
            results.append(compare_reply(result))
        else:
            error = result if isinstance(result, ErrorBody) else ErrorBody.of(result)
            results.append(ErrorReply(error=error))
    return BatchReply(results=results, usage=usage_of(costs))


def compare_reply(result: CompareResult) -> CompareReply:
    preference, truncation = result.preference, result.truncation
    return CompareReply(
        preferred=preference.preferred,
        probability_a=preference.p_a,
        probability_b=preference.p_b,
        margin=preference.margin,
        confidence=preference.confidence,
        orders=read_orders(result),
        model=result.model,
        usage=usage_of([result.cost]),
        truncated=Truncated(
            prompt=truncation.prompt, response_a=truncation.response_a, response_b=truncation.response_b
        ),
    )


def read_orders(result: CompareResult) -> Orders | None:
    """Return what each order alone would give; None for a model without orders."""
    if not result.has_orders:
        return None
    a_first, *b_first = result.preference.order_probabilities
    return Orders(a_first=a_first, b_first=b_first[0] if b_first else None)


def server_timing(stages: Mapping[str, float]) -> str:
    """Return the value of the Server-Timing header (W3C), in milliseconds.

    stages: seconds by stage.
    """
    return ", ".join(f"{stage};dur={seconds * 1e3:.3f}" for stage, seconds in stages.items())
