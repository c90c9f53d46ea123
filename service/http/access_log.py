"""Each request has an id, in its reply and in every log line about it; its end is counted and logged."""

import re
import time
import uuid
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from service.errors import CLIENT_LEFT
from service.scoring.pipeline import Answer

log = structlog.get_logger("tinyrm.access")

# What other systems use as ids, and nothing that could break a log or a header.
SANE_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


@dataclass(slots=True)
class Notes:
    """What a handler knows and the access log and the trace tell. stages: of the comparison that took longest.

    status: of the reply, once it has begun.
    """

    status: int = CLIENT_LEFT
    items: int = 0
    tokens: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    ended_ns: int = 0

    def add(self, answer: Answer) -> None:
        self.tokens += answer.tokens
        if answer.stages["total"] > self.stages.get("total", 0):
            self.stages, self.ended_ns = answer.stages, time.time_ns()


def notes_of(request: Request) -> Notes:
    notes: Notes = request.state.notes
    return notes


class Access:
    """Outermost. paths: the templates that may be named in the log; what people invent is `other`.

    observe: told of the end of each request, with its status and its seconds.
    """

    def __init__(
        self, app: ASGIApp, paths: AbstractSet[str], observe: Callable[[Scope, int, float], None], *, is_logged: bool
    ) -> None:
        self.app = app
        self.paths = paths
        self.observe = observe
        self.is_logged = is_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, request_id = time.perf_counter(), request_id_of(scope)
        notes = scope.setdefault("state", {})["notes"] = Notes()
        # Cleared first: on a kept connection, a request begins in the context of the one before it.
        clear_contextvars()
        bind_contextvars(request_id=request_id)

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, with_id)
        finally:
            seconds = time.perf_counter() - started
            self.observe(scope, notes.status, seconds)
            if self.is_logged:
                self._log(scope, notes, seconds)

    def _log(self, scope: Scope, notes: Notes, seconds: float) -> None:
        counted = {name: count for name in ("items", "tokens") if (count := getattr(notes, name))}
        log.info(
            "request",
            method=method_of(scope),
            endpoint=endpoint_of(scope, self.paths),
            status=notes.status,
            duration_s=round(seconds, 6),
            **counted,
        )


def endpoint_of(scope: Scope, paths: AbstractSet[str]) -> str:
    """The path's template, also of a request that was refused before it came to a route."""
    return scope["path"] if scope["path"] in paths else getattr(scope.get("route"), "path", "other")


def method_of(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"


def request_id_of(scope: Scope) -> str:
    """The caller's id if it is a sane one, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
