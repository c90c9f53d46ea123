"""Headers of every reply for browsers and caches, CORS for pages of other origins, and HEAD."""

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import refusal
from service.http.context import get_context

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Scores may belong to private texts, and every other reply is outdated at once.
    "Cache-Control": "no-store",
}
# For a page without its own policy: it runs no script and cannot be framed.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}


# Of a reply with a reward that was not made from all responses of its group; the bodies of some dialects have no room.
PARTIAL_HEADER = "X-TinyRM-Partial"


def raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as they travel."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


RAW_HEADERS, RAW_PAGE_HEADERS = raw_headers(SECURITY_HEADERS), raw_headers(SECURITY_HEADERS | PAGE_HEADERS)
RAW_PARTIAL_HEADER = PARTIAL_HEADER.lower().encode()


class ReplyHeadersMiddleware:
    """Adds the headers that a reply does not have yet, and marks partial rewards."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = dict(message.get("headers", ()))
                is_page = headers.get(b"content-type", b"").startswith(b"text/html")
                added = [one for one in (RAW_PAGE_HEADERS if is_page else RAW_HEADERS) if one[0] not in headers]
                if scope["type"] == "http" and get_context(scope).is_partial:
                    added.append((RAW_PARTIAL_HEADER, b"true"))
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class HeadMiddleware:
    """Answers HEAD as GET, without the body, so that every route of GET has it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        get_context(scope)  # both scopes have the same
        await self.app({**scope, "method": "GET"}, receive, send_without_body)


class JsonCorsMiddleware(CORSMiddleware):
    """Starlette's CORS for requests without cookies; a refused preflight gets a JSON error like every other refusal."""

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("Authorization", "Content-Type", "X-Request-Id", "traceparent"),
            expose_headers=("X-Request-Id", "Server-Timing", "Retry-After", PARTIAL_HEADER),
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        reply = super().preflight_response(request_headers)
        if reply.status_code < 400:
            return reply
        return refusal("origin_refused", bytes(reply.body).decode(), {"Vary": "Origin"})
