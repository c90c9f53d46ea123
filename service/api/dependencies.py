"""The state, deadline and fairness key that handlers and dialects take from a request."""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Header, Request

from service.http.context import RequestStats, get_context
from service.scoring.groups import Cohorts, Sample
from service.scoring.models import ModelRegistry
from service.scoring.pipeline import Cost, Question
from service.settings import Settings
from tinyrm.api import MAX_TIMEOUT_MS, ComparisonRequest, ErrorReply, PromptRequest, Usage
from tinyrm.deadline import Deadline


@dataclass(slots=True)
class AppState:
    """Everything that lives as long as the application.

    cohorts: None in one of several processes, where the samples of a cohort would not meet.
    request_reload: starts a reload of the bundles, in the process that owns the engines.
    """

    settings: Settings
    registry: ModelRegistry
    cohorts: Cohorts[Sample] | None
    request_reload: Callable[[], None]
    _drain: "asyncio.Task[None] | None" = field(default=None, init=False)

    async def drain(self) -> None:
        """Refuse new work and finish accepted work, within drain_timeout_s. Further calls wait for the first."""

        async def drain() -> None:
            deadline = Deadline.after(self.settings.drain_timeout_s)
            self.registry.refuse_new_work()
            if self.cohorts:  # first, because the models score their samples
                await self.cohorts.drain(self.settings.drain_timeout_s)
            await self.registry.drain(deadline.left_s() or 0.0)

        if self._drain is None:
            self._drain = asyncio.create_task(drain())
        await asyncio.shield(self._drain)

    async def cut(self) -> None:
        """Refuse new work, and make accepted work fail with ShuttingDown."""
        if self.cohorts:
            await self.cohorts.drain(0)
        await self.registry.drain(0)


def get_state(request: Request) -> AppState:
    """Return the application's state, which its lifespan provides."""
    state: AppState = request.state.app
    return state


def get_stats(request: Request) -> RequestStats:
    """Return the figures of the request for the access log and the trace."""
    return get_context(request.scope).stats


def get_fairness_key(request: Request) -> Hashable:
    """Return the client of the request if keys are required, else a unique key: each request has its own share then."""
    return get_context(request.scope).client_id or object()


TimeoutMs = Annotated[
    int | None,
    Header(
        alias="X-Request-Timeout-Ms",
        ge=1,
        le=MAX_TIMEOUT_MS,
        description="Time limit of the request: when it passes, the work is dropped and the reply is 504.",
    ),
]


def get_deadline(timeout_ms: int | None) -> Deadline:
    return Deadline.after(None if timeout_ms is None else timeout_ms / 1e3)


def get_question(body: PromptRequest) -> Question:
    swap = body.swap if isinstance(body, ComparisonRequest) else None
    return Question(body.prompt, body.domain, body.instruction, swap, body.model, body.reasoning)


def usage_of(costs: Iterable[Cost]) -> Usage:
    """Return the sum of the costs of a request's items."""
    costs = list(costs)
    return Usage(
        sequences=sum(cost.sequences for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        gflops=sum(cost.gflops for cost in costs),
    )


# For the `responses` of the OpenAPI document.
ERRORS: Mapping[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The body is not JSON.",
        401: "An API key is required.",
        403: "The key lacks the scope.",
        404: "No such model.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        415: "The body is compressed.",
        422: "The request cannot be scored as it is.",
        429: "Too much is waiting; see Retry-After.",
        500: "The engine failed on this request, or the service has a bug.",
        503: "The service is not ready, or is shutting down; see Retry-After.",
        504: "The time limit of X-Request-Timeout-Ms passed.",
    }.items()
}
KEY_ERRORS: Mapping[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 403)}
