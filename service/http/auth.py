"""Check that a request has an API key with the scope that its path requires."""

import base64
import binascii
import re
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from service.errors import refusal
from service.http.context import get_context
from service.keys import KeyRing, KeyScope

SCHEME = "bearer"
# For clients that can only be given an address, such as http://any:KEY@HOST/get_reward: they send the key as password.
BASIC = "basic"

# These need no key: health checks, and the page and the API's description, which are as public as the code.
OPEN_PATHS = frozenset(("/health", "/healthz", "/readyz", "/docs", "/redoc", "/openapi.json", "/"))
PAGE_FILE = re.compile(r"/page/[a-z0-9_-]+\.[a-z0-9]+")


def required_scope(path: str) -> KeyScope | None:
    """Return the scope that a key needs for `path`; None if no key is needed.

    Unlisted paths need a key, so that a new endpoint is not left open.
    """
    if path in OPEN_PATHS or PAGE_FILE.fullmatch(path):
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
        token = read_token(scope)
        key = self.keys.find(token) if token else None
        if key:
            bind_contextvars(client=key.name)
            get_context(scope).client_id = key.name
        if key is None:
            # Basic is accepted and not offered: a browser would ask for a name and a password.
            message = "unknown API key" if token else "send a key: Authorization: Bearer <key>"
            await refusal("unauthorized", message, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        elif needed not in key.scopes:
            await refusal("forbidden", f"this key lacks the scope {needed}")(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def read_token(scope: Scope) -> bytes | None:
    """Return the key in the Authorization header: a bearer token (RFC 6750) or the password of RFC 7617.

    Schemes are case-insensitive. The name before the password is not read.
    """
    scheme, _, credentials = Headers(scope=scope).get("authorization", "").partition(" ")
    token = credentials.strip().encode("latin-1")
    if scheme.lower() == BASIC:
        try:
            token = base64.b64decode(token, validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    elif scheme.lower() != SCHEME:
        return None
    return token or None


def declare_security(api: dict[str, Any], *, required: bool) -> None:
    """Add the scope that each operation needs to an OpenAPI document.

    required: whether the service requires keys; if not, every operation also works without one.
    """
    schemes = {scheme: {"type": "http", "scheme": scheme} for scheme in (SCHEME, BASIC)}
    api.setdefault("components", {})["securitySchemes"] = schemes
    for path, operations in api["paths"].items():
        needed = required_scope(path)
        options: list[dict[str, Collection[str]]] = [{scheme: [needed]} for scheme in schemes] if needed else []
        if options and not required:
            options.insert(0, {})
        for operation in operations.values():
            operation["security"] = options
