"""What a connection may cost before it is a request: bytes of headers, time to send them, and that it is there at all.

uvicorn bounds none of this with httptools, its parser here: a client that never ends its headers would be waited for
without end, and its headers kept without end. Refusals that arrive as whole requests are marked and answered by
`RefuseMarked`, with their place in metrics and log; the others are answered on the wire.
"""

import asyncio
import http
import resource
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import refusal
from service.http.auth import OPEN_PATHS
from service.http.headers import SECURITY_HEADERS

log = structlog.get_logger("tinyrm")

# Connections beyond the limit that are still told so; further ones are told before they ask.
SURPLUS_CONNECTIONS = 512
# Connections that the kernel holds until they are accepted; those it does not hold wait for seconds without a word.
MIN_BACKLOG = 2048
# The model, the log, the collector, the engine.
OTHER_FILES = 128
# The application says what is wrong with a slow body; the connection ends only what the application does not wait for.
PATIENCE_S = 1.0

# A process that is full is still alive, and whoever watches it is told so.
ANSWERED_WHEN_FULL = OPEN_PATHS | {"/metrics"}

MESSAGES = {
    "invalid_http": "these bytes are no HTTP request",
    "headers_too_large": "the request line and the headers are larger than this service takes",
    "header_timeout": "the headers were not complete in time",
    "too_many_connections": "too many connections are open; close some, or try again after Retry-After",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one process."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    body_timeout_s: float

    def options(self) -> dict[str, Any]:
        """For uvicorn.Config."""
        return {
            "http": partial(LimitedProtocol, self),
            "ws": "none",  # nothing here speaks it
            "backlog": max(self.max_connections, MIN_BACKLOG),
            "server_header": False,
        }


def allow_open_files(max_connections: int) -> int:
    """Raise the soft limit on open files as far as needed; how many connections fit under it."""
    others = SURPLUS_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < max_connections + others:
        soft = min(hard, max_connections + others)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < max_connections + others:
        log.warning("the limit on open files bounds the connections", files=hard, asked_for=max_connections)
    return max(1, min(max_connections, soft - others))


class Stage(Enum):
    """What is awaited from the client. IDLE: nothing; uvicorn closes a connection that stays so."""

    HEADERS = "headers"
    BODY = "body"
    IDLE = "idle"


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's, which measures what arrives. A request that arrives in one piece never starts a timer."""

    def __init__(self, limits: Limits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._stage = Stage.HEADERS
        self._is_surplus = False
        self._began = False
        self._header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        beyond = len(self.connections) - self._limits.max_connections
        self._is_surplus = beyond > 0
        if beyond > SURPLUS_CONNECTIONS:
            self._refuse("too_many_connections")
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._began = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._stage is Stage.IDLE and not self._began and self._is_answered:
            self._stage = Stage.HEADERS  # blank lines, which uvicorn takes for a sign of life
        if self._stage is Stage.HEADERS and not self._began:
            self._count_headers(len(data))
        if self._stage is not Stage.IDLE and self._timer is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        self._enter(Stage.HEADERS)
        self._began, self._header_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._enter(Stage.BODY)
        size = len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        if size > self._limits.max_header_bytes:
            self.scope["state"]["refused"] = "headers_too_large"
        elif self._is_surplus:
            self.scope["state"]["refused"] = "too_many_connections"
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._enter(Stage.IDLE)
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read. Its reply is given up when that lasts."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.body_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - a JSON error instead of that text
        self._refuse("invalid_http")

    @property
    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _enter(self, stage: Stage) -> None:
        self._stop_timer()
        self._stage = stage

    def _count_headers(self, received: int) -> None:
        """httptools shows a header when it is complete; one that never is shows only here."""
        self._header_bytes += received
        if self._header_bytes > self._limits.max_header_bytes:
            self._refuse("headers_too_large")

    def _start_timer(self) -> None:
        limits = self._limits
        patience = limits.header_timeout_s if self._stage is Stage.HEADERS else limits.body_timeout_s + PATIENCE_S
        self._timer = self.loop.call_later(patience, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _on_timeout(self) -> None:
        if not self._is_answered:
            self._start_timer()  # it is we who are late
        elif self._stage is Stage.HEADERS and self.scope is not None:
            self._refuse("header_timeout")
        else:
            self.transport.close()

    def _refuse(self, kind: str) -> None:
        """Answer on the wire and leave. While another answer is on its way, only leave."""
        if self._is_answered and not self.transport.is_closing():
            self.transport.write(on_the_wire(kind))
        self.transport.close()
        # An id that is bound here is of the request before.
        structlog.contextvars.clear_contextvars()
        log.info("connection refused", reason=kind)


def on_the_wire(kind: str) -> bytes:
    """A whole HTTP reply."""
    reply = refusal(kind, MESSAGES[kind], {**SECURITY_HEADERS, "Connection": "close"})
    status = f"HTTP/1.1 {reply.status_code} {http.HTTPStatus(reply.status_code).phrase}".encode()
    headers = [name + b": " + value for name, value in reply.raw_headers]
    return b"\r\n".join([status, *headers, b"", bytes(reply.body)])


class RefuseMarked:
    """Answers what its connection marked. After the body was read: closing on unread bytes loses the reply."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope.get("state", {}).get("refused")
        if kind is None or (kind == "too_many_connections" and scope["path"] in ANSWERED_WHEN_FULL):
            await self.app(scope, receive, send)
            return
        headers = {"Connection": "close"} | ({"Retry-After": "1"} if kind == "too_many_connections" else {})
        await refusal(kind, MESSAGES[kind], headers)(scope, receive, send)
