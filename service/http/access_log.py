"""Give every request an id, in its reply and in its log lines; count and log its end."""

import re
import time
import uuid
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from service.http.context import get_context

log = structlog.get_logger("tinyrm.access")

# Allows the ids of common systems; excludes characters that could break a log or a header.
SAFE_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

# Called at the end of each request with its scope, status and duration in seconds.
Observe = Callable[[Scope, int, float], None]


class AccessLogMiddleware:
    """The outermost middleware: binds the request id, counts and logs each request.

    paths: path templates that the log may name; any other path is logged as `other`.
    observe: called at the end of each request.
    is_logged: whether to log a line for each request.
    """

    def __init__(self, app: ASGIApp, paths: AbstractSet[str], observe: Observe, *, is_logged: bool) -> None:
        self.app = app
        self.paths = paths
        self.observe = observe
        self.is_logged = is_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context, request_id = get_context(scope), get_request_id(scope)
        # The client checks with it that it reads the response to its own request: proxies replace an X-Request-Id.
        call_id = Headers(scope=scope).get("x-call-id", "")
        # A request on a kept-alive connection starts in the log context of the previous one.
        clear_contextvars()
        bind_contextvars(request_id=request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.stats.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if SAFE_ID.fullmatch(call_id):
                    headers["X-Call-Id"] = call_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - context.started_s
            self.observe(scope, context.stats.status, seconds)
            if self.is_logged:
                counts = {"items": context.stats.items, "tokens": context.stats.tokens}
                log.info(
                    "request",
                    method=get_method(scope),
                    endpoint=get_endpoint(scope, self.paths),
                    status=context.stats.status,
                    duration_s=round(seconds, 6),
                    **{name: count for name, count in counts.items() if count},
                )


def get_endpoint(scope: Scope, paths: AbstractSet[str]) -> str:
    """Return the path's template, even for a request that was refused before it reached a route."""
    return scope["path"] if scope["path"] in paths else getattr(scope.get("route"), "path", "other")


def get_method(scope: Scope) -> str:
    """Return the method, or `other` if it is not a standard one."""
    return scope["method"] if scope["method"] in METHODS else "other"


def get_request_id(scope: Scope) -> str:
    """Return the client's request id if it is safe to log, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if SAFE_ID.fullmatch(given) else uuid.uuid4().hex
