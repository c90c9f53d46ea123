"""What every reply says to browsers and caches, and which pages of other origins may read it."""

from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import refusal

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Scores are of texts that may be private, and everything else is of this moment.
    "Cache-Control": "no-store",
}
# For a page that brings no policy of its own: nothing runs and nobody frames it.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}


class SecurityHeaders:
    """Adds what a reply does not set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                _add(headers, SECURITY_HEADERS)
                if headers.get("content-type", "").startswith("text/html"):
                    _add(headers, PAGE_HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


def _add(headers: MutableHeaders, defaults: Mapping[str, str]) -> None:
    for name, value in defaults.items():
        headers.setdefault(name, value)


class Cors(CORSMiddleware):
    """Starlette's, for requests without cookies; what it refuses is a JSON error like every other."""

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", "X-Request-Id", "traceparent"),
            expose_headers=("X-Request-Id", "Server-Timing", "Retry-After"),
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        reply = super().preflight_response(request_headers)
        if reply.status_code < 400:
            return reply
        return refusal("origin_refused", bytes(reply.body).decode(), {"Vary": "Origin"})
