"""API keys: who may do what. A file holds their hashes; it is read again whenever it changes.

A key is 256 random bits, so one round of SHA-256 is the right hash: slow and salted ones protect guessable passwords,
and nobody guesses 256 bits. It costs a microsecond, so a flood of wrong keys costs no more than the requests.
"""

import hashlib
import hmac
import os
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from service.errors import refusal
from tinyrm.errors import TinyRMError

log = structlog.get_logger("tinyrm.auth")

SCHEME = "bearer"
KeyScope = Literal["score", "metrics", "admin"]

# Open to all: what a load balancer asks, and the API's description and the page, which are as public as this code.
OPEN_PATHS = frozenset(("/healthz", "/readyz", "/docs", "/openapi.json", "/", "/page/app.js", "/page/style.css"))


def scope_of(path: str) -> KeyScope | None:
    """What a key needs for a path; None: no key. A path that is not listed needs one, so a new one is not left open."""
    if path in OPEN_PATHS:
        return None
    if path == "/metrics":
        return "metrics"
    return "admin" if path.startswith("/admin/") else "score"


class InvalidKeys(TinyRMError):
    """A file of keys that cannot be read."""

    type = "invalid_keys"


class ApiKey(BaseModel):
    """A key as it is kept: not the key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[KeyScope] = Field(min_length=1)
    created: datetime


class ApiKeys(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have one name")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises InvalidKeys."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise InvalidKeys(f"{path} is no file of keys: {_first(error)}") from error
        except OSError as error:
            raise InvalidKeys(f"{path} cannot be read: {error.strerror}") from error


def _first(error: ValidationError) -> str:
    """Where and what, without the content: it would be in the log."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def digest_of(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


class KeyRing:
    """The keys of a file, as of now. Raises InvalidKeys if there are none to begin with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._keys = ApiKeys.read(path).keys
        self._warn_if_others_may_touch()

    def holder(self, token: bytes) -> ApiKey | None:
        """Whose token this is. All keys are compared, each in constant time: the time it takes tells nothing."""
        self._refresh()
        digest, found = digest_of(token), None
        for key in self._keys:
            if hmac.compare_digest(digest, key.sha256):
                found = key
        return found

    def _refresh(self) -> None:
        """One stat for each request: a revoked key is refused from the next request on, in every process."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        # Of before the reading: what is written meanwhile is read the next time.
        self._stamp = stamp
        try:
            self._keys = ApiKeys.read(self._path).keys
        except InvalidKeys as error:
            log.error("keys not read, the ones before stay", reason=str(error))
        else:
            log.info("keys read", keys=len(self._keys))
            self._warn_if_others_may_touch()

    def _warn_if_others_may_touch(self) -> None:
        # A group may read: that is how Kubernetes shows a Secret, root's file, to a process that is not root.
        if self._stamp and self._stamp[-1] & 0o037:
            log.warning("others may read or write the keys", path=str(self._path), advice="chmod 600")


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Differs when the file does; the last number is its mode."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - at every request, and Path.stat takes twice as long
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_mode


class RequireKey:
    """Lets a request through if its key may do what it asks. Before the body is read: strangers cost little."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        needed = scope_of(scope["path"]) if scope["type"] == "http" else None
        if needed is None:
            await self.app(scope, receive, send)
            return
        token = bearer_token(scope)
        key = self.keys.holder(token) if token else None
        if key:
            bind_contextvars(client=key.name)
            scope.setdefault("state", {})["client"] = key.name
        if key is None:
            message = "this key is not known" if token else "send a key: Authorization: Bearer <key>"
            await refusal("unauthorized", message, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        elif needed not in key.scopes:
            await refusal("forbidden", f"this key lacks the scope {needed}")(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def bearer_token(scope: Scope) -> bytes | None:
    """As in RFC 6750; the scheme's name in any case."""
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") or None if scheme.lower() == SCHEME else None


def declare(api: dict[str, Any], *, required: bool) -> None:
    """Write into an OpenAPI document what `scope_of` asks for. Not required: every operation works without, too."""
    api.setdefault("components", {})["securitySchemes"] = {SCHEME: {"type": "http", "scheme": SCHEME}}
    for path, operations in api["paths"].items():
        for operation in operations.values():
            operation["security"] = _security(scope_of(path), required=required)


def _security(needed: KeyScope | None, *, required: bool) -> list[dict[str, Collection[str]]]:
    if needed is None:
        return []
    with_key: dict[str, Collection[str]] = {SCHEME: [needed]}
    return [with_key] if required else [{}, with_key]
