"""Check that a request has an API key with the scope that its path requires."""

from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from service.errors import refusal
from service.http.context import get_context
from service.keys import KeyRing, KeyScope

SCHEME = "bearer"

# These need no key: health checks, and the page and the API's description, which are as public as the code.
OPEN_PATHS = frozenset(("/healthz", "/readyz", "/docs", "/openapi.json", "/", "/page/app.js", "/page/style.css"))


def required_scope(path: str) -> KeyScope | None:
    """Return the scope that a key needs for `path`; None if no key is needed.

    Unlisted paths need a key, so that a new endpoint is not left open.
    """
    if path in OPEN_PATHS:
        return None
    if path == "/metrics":
        return "metrics"
    return "admin" if path.startswith("/admin/") else "score"


class ApiKeyMiddleware:
    """Passes a request on if its key has the scope. Outside of BodyLimitMiddleware: no body is read without a key."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        needed = required_scope(scope["path"]) if scope["type"] == "http" else None
        if needed is None:
            await self.app(scope, receive, send)
            return
        token = bearer_token(scope)
        key = self.keys.find(token) if token else None
        if key:
            bind_contextvars(client=key.name)
            get_context(scope).client_id = key.name
        if key is None:
            message = "unknown API key" if token else "send a key: Authorization: Bearer <key>"
            await refusal("unauthorized", message, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        elif needed not in key.scopes:
            await refusal("forbidden", f"this key lacks the scope {needed}")(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def bearer_token(scope: Scope) -> bytes | None:
    """Return the token of the Authorization header (RFC 6750); the scheme is case-insensitive."""
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") or None if scheme.lower() == SCHEME else None


def declare_security(api: dict[str, Any], *, required: bool) -> None:
    """Add the scope that each operation needs to an OpenAPI document.

    required: whether the service requires keys; if not, every operation also works without one.
    """
    api.setdefault("components", {})["securitySchemes"] = {SCHEME: {"type": "http", "scheme": SCHEME}}
    for path, operations in api["paths"].items():
        needed = required_scope(path)
        options: list[dict[str, Collection[str]]] = [{SCHEME: [needed]}] if needed else []
        if options and not required:
            options.insert(0, {})
        for operation in operations.values():
            operation["security"] = options
