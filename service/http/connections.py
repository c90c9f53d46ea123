"""Limits of one connection: bytes of headers, time to send them, and the number of open connections.

uvicorn limits none of these with httptools, its parser here: headers without an end would fill the memory. A refused
request that arrives whole is marked here, and `ConnectionRefusalMiddleware` replies to it, so that it is counted and
logged; other refusals are written to the socket directly.

Only this file relies on uvicorn's internals: HttpToolsProtocol's callbacks and attributes, its cycles and the server's
state. They may change in a later release: tests/service/test_limits.py checks that they exist.
"""

import asyncio
import http
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import refusal
from service.http.auth import OPEN_PATHS
from service.http.context import get_context
from service.http.headers import SECURITY_HEADERS

log = structlog.get_logger("tinyrm")

# Connections beyond the limit that may still send a request and get a 503; further ones are refused at once.
SURPLUS_CONNECTIONS = 512
# Connections that the kernel queues until they are accepted; a client beyond that waits for seconds.
MIN_BACKLOG = 2048
# Open files beside the connections: the model, the log, the collector and the engine.
OTHER_FILES = 128
# The application times out slow bodies itself; the connection does so later, if the application does not wait.
GRACE_S = 1.0

# Health checks and /metrics still answer when the connection limit is reached.
ANSWERED_WHEN_FULL = OPEN_PATHS | {"/metrics"}

MESSAGES = {
    "invalid_http": "this is not a valid HTTP request",
    "headers_too_large": "the request line and the headers are larger than this service accepts",
    "header_timeout": "the headers did not arrive in time",
    "too_many_connections": "too many connections are open; close some, or try again after Retry-After",
}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one process."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    body_timeout_s: float

    def uvicorn_options(self) -> dict[str, Any]:
        """Return the arguments of uvicorn.Config for these limits."""
        return {
            "http": partial(BoundedHttpProtocol, self),
            "ws": "none",  # no endpoint uses WebSockets
            "backlog": max(self.max_connections, MIN_BACKLOG),
            "server_header": False,
        }


def allow_open_files(max_connections: int) -> int:
    """Raise the soft limit on open files as far as needed, and return the number of connections that fit."""
    others = SURPLUS_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < max_connections + others:
        soft = min(hard, max_connections + others)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < max_connections + others:
        log.warning("the limit on open files bounds the connections", files=hard, asked_for=max_connections)
    return max(1, min(max_connections, soft - others))


class Stage(Enum):
    """The part of a request that the client must send next; IDLE: none, and uvicorn ends an idle connection later."""

    HEADERS = "headers"
    BODY = "body"
    IDLE = "idle"


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits. A request that arrives in one piece needs no timer."""

    def __init__(self, limits: ConnectionLimits, *args: Any, **kwargs: Any) -> None:
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
            self._stage = Stage.HEADERS  # blank lines, which stopped uvicorn's own keep-alive timer
        if self._stage is Stage.HEADERS and not self._began:
            # Bytes as they arrive: httptools reports a header only when it is complete.
            self._header_bytes += len(data)
            if self._header_bytes > self._limits.max_header_bytes:
                self._refuse("headers_too_large")
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
            get_context(self.scope).refusal = "headers_too_large"  # type: ignore[arg-type]  # a TypedDict is a dict
        elif self._is_surplus:
            get_context(self.scope).refusal = "too_many_connections"  # type: ignore[arg-type]  # a TypedDict is a dict
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._enter(Stage.IDLE)
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Abort the connection if the client does not resume reading its reply in time."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.body_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # a JSON error replaces that text
        self._refuse("invalid_http")

    @property
    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _enter(self, stage: Stage) -> None:
        self._stop_timer()
        self._stage = stage

    def _start_timer(self) -> None:
        limits = self._limits
        timeout_s = limits.header_timeout_s if self._stage is Stage.HEADERS else limits.body_timeout_s + GRACE_S
        self._timer = self.loop.call_later(timeout_s, self._on_timeout)

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
            self._start_timer()  # the service is late, not the client
        elif self._stage is Stage.HEADERS and self.scope is not None:
            self._refuse("header_timeout")
        else:
            self.transport.close()

    def _refuse(self, kind: str) -> None:
        """Write the refusal to the socket and close it; only close it while another reply is being written."""
        if self._is_answered and not self.transport.is_closing():
            self.transport.write(raw_refusal(kind))
        self.transport.close()
        # A bound request id would be that of the previous request.
        structlog.contextvars.clear_contextvars()
        log.info("connection refused", reason=kind)


def raw_refusal(kind: str) -> bytes:
    """Return the bytes of a complete HTTP reply."""
    reply = refusal(kind, MESSAGES[kind], {**SECURITY_HEADERS, "Connection": "close"})
    status = f"HTTP/1.1 {reply.status_code} {http.HTTPStatus(reply.status_code).phrase}".encode()
    headers = [name + b": " + value for name, value in reply.raw_headers]
    return b"\r\n".join([status, *headers, b"", bytes(reply.body)])


class ConnectionRefusalMiddleware:
    """Replies to a request that its connection marked as refused.

    Innermost, after the body is read: if a connection closes with unread bytes, the client loses the reply.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = get_context(scope).refusal if scope["type"] == "http" else None
        if kind is None or (kind == "too_many_connections" and scope["path"] in ANSWERED_WHEN_FULL):
            await self.app(scope, receive, send)
            return
        headers = {"Connection": "close"} | ({"Retry-After": "1"} if kind == "too_many_connections" else {})
        await refusal(kind, MESSAGES[kind], headers)(scope, receive, send)


def make_protocol(server: uvicorn.Server) -> asyncio.Protocol:
    """Return a protocol for one accepted connection, as uvicorn's own listener does."""
    return server.config.http_protocol_class(  # type: ignore[call-arg]  # uvicorn's type is the base class
        config=server.config, server_state=server.server_state, app_state=server.lifespan.state
    )


def end_keep_alive(connections: Iterable[Any]) -> None:
    """Make each connection close after its pending reply: a later request on it would be lost."""
    for connection in connections:
        cycle = getattr(connection, "cycle", None)
        if cycle and not cycle.response_complete:
            cycle.keep_alive = False
