"""Give every request an id, in its reply and in its log lines; count and log its end."""

import os
import re
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from service.http.context import find_header, get_context

log = structlog.get_logger("tinyrm.access")

# Allows the ids of common systems; excludes characters that could break a log or a header.
SAFE_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
OWN_HEADERS = (b"x-request-id", b"x-call-id")
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
        added = [(b"x-request-id", request_id.encode("latin-1"))]
        # The client checks with it that it reads the response to its own request: proxies replace an X-Request-Id.
        if (call_id := find_header(scope, b"x-call-id")) and SAFE_ID.fullmatch(call_id):
            added.append((b"x-call-id", call_id.encode("latin-1")))
        # A request on a kept-alive connection starts in the log context of the previous one.
        clear_contextvars()
        bind_contextvars(request_id=request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.stats.status = message["status"]
                others = (one for one in message.get("headers", ()) if one[0] not in OWN_HEADERS)
                message["headers"] = [*others, *added]
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
    given = find_header(scope, b"x-request-id")
    return given if given and SAFE_ID.fullmatch(given) else os.urandom(16).hex()
