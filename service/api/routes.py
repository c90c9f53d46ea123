"""The endpoints. A handler turns a body into a call and an answer into a body, and nothing else."""

import asyncio
import math
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.dependencies import get_state
from service.errors import error_response
from service.http.context import RequestStats, get_context
from service.scoring.models import Deployment
from service.scoring.pipeline import Answer, Pipeline
from service.scoring.ranking import Ranked, rewards_of
from service.scoring.ranking import rank as tournament
from tinyrm.api import (
    MAX_TIMEOUT_MS,
    BatchReply,
    BatchRequest,
    CompareReply,
    CompareRequest,
    ErrorBody,
    ErrorReply,
    GroupRequest,
    InvalidItem,
    ModelCard,
    ModelList,
    RankReply,
    RankRequest,
    RewardsReply,
    RewardsRequest,
    Status,
    Truncated,
    Usage,
)
from tinyrm.errors import InvalidInput, TinyRMError

ERRORS: Mapping[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The body is not JSON.",
        401: "A key is needed.",
        403: "The key may not do this.",
        404: "No such model.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        422: "The request cannot be scored as it is.",
        429: "Too much is waiting; see Retry-After.",
        500: "The engine failed on this request, or an error of ours.",
        503: "The service is not ready or shutting down; see Retry-After.",
        504: "Not answered within the request's own X-Request-Timeout-Ms.",
    }.items()
}

KEY_ERRORS: Mapping[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 403)}

# Items of one call that are encoded or wait at once: enough to keep an engine full, few enough that a long list does
# not fill the queue for everybody.
WINDOW_ITEMS = 256

router = APIRouter()


def deployment_of(request: Request) -> Deployment:
    return get_state(request).deployment


async def _deployment_of(request: Request) -> Deployment:
    """A dependency that is not async would be called in a thread."""
    return deployment_of(request)


DeploymentOf = Annotated[Deployment, Depends(_deployment_of)]


Milliseconds = Annotated[
    int | None,
    Header(
        alias="X-Request-Timeout-Ms", ge=1, le=MAX_TIMEOUT_MS,
        description="An answer later than this is not wanted: the work is dropped, the reply is 504.",
    ),
]  # fmt: skip


@router.post("/v1/compare", responses={**ERRORS}, tags=["score"])
async def compare(
    body: CompareRequest,
    request: Request,
    response: Response,
    deployment: DeploymentOf,
    timeout_ms: Milliseconds = None,
) -> CompareReply:
    """Which of two responses is better, and how surely."""
    stats = get_context(request.scope).stats
    stats.items = 1
    pipeline = deployment.of(body)
    answer = await pipeline.compare(body, flow=flow_of(request), timeout_s=seconds(timeout_ms))
    stats.add(answer.tokens, answer.stages)
    response.headers["Server-Timing"] = server_timing(answer.stages)
    return reply_of(answer, pipeline)


@router.post("/v1/compare/batch", responses={**ERRORS}, tags=["score"])
async def compare_batch(
    body: BatchRequest, request: Request, deployment: DeploymentOf, timeout_ms: Milliseconds = None
) -> BatchReply:
    """Many comparisons at once. Results keep the order of the items; a bad item fails alone."""
    limit = get_state(request).settings.max_batch_items
    if len(body.items) > limit:
        raise InvalidInput(
            f"items: {len(body.items)} comparisons in one call, at most {limit} are taken; split the list"
        )
    stats = get_context(request.scope).stats
    stats.items = len(body.items)
    ends_at = None if timeout_ms is None else time.perf_counter() + timeout_ms / 1e3
    for pipeline in {id(p): p for p in pipelines_of(body.items, deployment)}.values():
        pipeline.refuse_if_busy(seconds(timeout_ms))
    window, flow = asyncio.Semaphore(WINDOW_ITEMS), flow_of(request)

    async def result_of(item: CompareRequest | InvalidItem) -> CompareReply | ErrorReply:
        async with window:
            left_s = None if ends_at is None else ends_at - time.perf_counter()
            return await _result_of(item, deployment, stats, flow, left_s)

    results = await asyncio.gather(*map(result_of, body.items))
    answered = [r.usage for r in results if isinstance(r, CompareReply)]
    usage = Usage(tokens=sum(u.tokens for u in answered), gflops=sum(u.gflops for u in answered))
    return BatchReply(results=results, usage=usage)


@router.post("/v1/rank", responses={**ERRORS}, tags=["score"])
async def rank(
    body: RankRequest, request: Request, deployment: DeploymentOf, timeout_ms: Milliseconds = None
) -> RankReply:
    """The order of several responses, with strengths and how sure they are."""
    pipeline = deployment.of(body)
    ranked = await _ranked(body, request, pipeline, timeout_ms)
    shown = [[None if math.isnan(p) else p for p in row] for row in ranked.probabilities.tolist()]
    return RankReply(
        order=ranked.order,
        strengths=ranked.strengths.values.tolist(),
        standard_errors=ranked.strengths.standard_errors.tolist(),
        cycle_rate=ranked.cycle_rate,
        win_matrix=shown if body.win_matrix else None,
        comparisons=len(ranked.answers),
        model=pipeline.manifest.identity,
        usage=Usage(tokens=ranked.tokens, gflops=ranked.gflops),
        truncated_tokens=ranked.truncated_tokens,
    )


@router.post("/v1/rewards", responses={**ERRORS}, tags=["score"])
async def rewards(
    body: RewardsRequest, request: Request, deployment: DeploymentOf, timeout_ms: Milliseconds = None
) -> RewardsReply:
    """A reward for each of several responses, from comparisons among them."""
    pipeline = deployment.of(body)
    ranked = await _ranked(body, request, pipeline, timeout_ms)
    usage = Usage(tokens=ranked.tokens, gflops=ranked.gflops)
    return RewardsReply(rewards=rewards_of(ranked, body), model=pipeline.manifest.identity, usage=usage)


async def _ranked(body: GroupRequest, request: Request, pipeline: Pipeline, timeout_ms: int | None) -> Ranked:
    ranked = await tournament(
        pipeline, body, flow=flow_of(request), timeout_s=seconds(timeout_ms),
        max_comparisons=get_state(request).settings.max_batch_items,
    )  # fmt: skip
    stats = get_context(request.scope).stats
    stats.items = len(ranked.answers)
    for answer in ranked.answers:
        stats.add(answer.tokens, answer.stages)
    return ranked


@router.get("/v1/models", tags=["about"], responses={**KEY_ERRORS})
async def models(deployment: DeploymentOf) -> ModelList:
    """What is served, and on what it runs."""
    return ModelList(models=[card_of(pipeline, deployment) for pipeline in deployment.pipelines.values()])


@router.get("/healthz", tags=["health"])
async def healthz() -> Status:
    """The process answers."""
    return Status(status="ok")


@router.get("/readyz", tags=["health"], response_model=Status, responses={503: ERRORS[503]})
async def readyz(deployment: DeploymentOf) -> Any:
    """The model is loaded, the engine has run, and new work is taken."""
    trouble = deployment.trouble()
    return error_response(503, ErrorBody(type="not_ready", message=trouble)) if trouble else Status(status="ready")


@router.get("/metrics", tags=["health"], response_class=Response, responses={**KEY_ERRORS})
async def metrics(deployment: DeploymentOf) -> Response:
    """Prometheus text format."""
    return Response(deployment.metrics.expose(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _result_of(
    item: CompareRequest | InvalidItem,
    deployment: Deployment,
    stats: RequestStats,
    flow: Hashable,
    timeout_s: float | None,
) -> CompareReply | ErrorReply:
    if isinstance(item, InvalidItem):
        return ErrorReply(error=item.error)
    try:
        pipeline = deployment.of(item)
        answer = await pipeline.compare(item, flow=flow, timeout_s=timeout_s, patient=True)
    except TinyRMError as error:
        return ErrorReply(error=ErrorBody.of(error))
    stats.add(answer.tokens, answer.stages)
    return reply_of(answer, pipeline)


def flow_of(request: Request) -> Hashable:
    """Who shares the engine with whom: clients, if they are known by their keys, else single calls."""
    return get_context(request.scope).client_id or object()


def pipelines_of(items: Iterable[CompareRequest | InvalidItem], deployment: Deployment) -> Iterator[Pipeline]:
    """Those that a list needs; an item that names no model that is served fails by itself, later."""
    for item in items:
        with suppress(TinyRMError):
            if isinstance(item, CompareRequest):
                yield deployment.of(item)


def card_of(pipeline: Pipeline, deployment: Deployment) -> ModelCard:
    manifest, spec, engine = pipeline.manifest, pipeline.manifest.spec, pipeline.backend.greeting.info
    return ModelCard(
        name=manifest.name,
        revision=manifest.revision,
        default=pipeline is deployment.default,
        domains=spec.domains,
        default_domain=spec.default_domain,
        template=spec.template.name,
        max_tokens=spec.max_tokens,
        parameters=manifest.parameters,
        temperature=manifest.temperature,
        engine=engine.name,
        precision=engine.precision,
    )


def seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def reply_of(answer: Answer, pipeline: Pipeline) -> CompareReply:
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
    """Stage durations as the Server-Timing header has them, in milliseconds (W3C Server Timing)."""
    return ", ".join(f"{stage};dur={seconds * 1e3:.3f}" for stage, seconds in stages.items())
