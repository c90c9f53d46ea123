"""One connection: limits of headers, time and number, offers to upgrade, and clients that close their half.

uvicorn limits nothing with httptools, its parser here: headers without an end would fill the memory. A refused
request that arrives whole is marked here, and `ConnectionRefusalMiddleware` replies to it, so that it is counted and
logged; other refusals are written to the socket directly.

Only this file relies on uvicorn's internals: HttpToolsProtocol's callbacks and attributes, its cycles and the server's
state. They may change in a later release: tests/service/test_limits.py checks that they exist.
"""

import asyncio
import http
import resource
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import httptools
import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import refusal
from service.http.auth import OPEN_PATHS
from service.http.context import get_context
from service.http.headers import SECURITY_HEADERS
from tinyrm.errors import InvalidSettings

log = structlog.get_logger("tinyrm")

# Connections beyond the limit that may still send a request and get a 503; further ones are refused at once.
SURPLUS_CONNECTIONS = 512
# Connections that the kernel queues until they are accepted; a client beyond that waits for seconds.
MIN_BACKLOG = 2048
# Open files beside the connections: the model, the log, the collector and the engine.
OTHER_FILES = 128
# With a limit on open files that leaves less room than this, a service would be of no use.
MIN_CONNECTIONS = 32
# How long a client that has closed its half of the connection is believed to read its reply, and between further looks.
HALF_CLOSED_S = 0.25
# The application times out slow bodies itself; the connection does so later, if the application does not wait.
GRACE_S = 1.0

# Health checks and /metrics still answer when the connection limit is reached.
ANSWERED_WHEN_FULL = OPEN_PATHS | {"/metrics"}

# As uvicorn writes it.
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
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
    keep_alive_s: float = 75.0
    surplus: int | None = None  # by default SURPLUS_CONNECTIONS

    def uvicorn_options(self) -> dict[str, Any]:
        """Return the arguments of uvicorn.Config for these limits."""
        return {
            "http": partial(BoundedHttpProtocol, self),
            "ws": "none",  # no endpoint uses WebSockets
            "backlog": max(self.max_connections, MIN_BACKLOG),
            "server_header": False,
            "timeout_keep_alive": self.keep_alive_s,
        }


def allow_open_files(max_connections: int) -> int:
    """Raise the soft limit on open files as far as needed, and return the number of connections that fit.

    Raises InvalidSettings if the limit leaves too few.
    """
    others = SURPLUS_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < max_connections + others:
        soft = min(hard, max_connections + others)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < max_connections + others:
        log.warning("the limit on open files bounds the connections", files=hard, asked_for=max_connections)
    room = soft - OTHER_FILES
    if room < MIN_CONNECTIONS:
        raise InvalidSettings(
            f"the limit on open files is {soft}, and the service needs at least {OTHER_FILES + MIN_CONNECTIONS}; "
            "raise it: ulimit -n, LimitNOFILE= of systemd, --ulimit of docker"
        )
    return min(max_connections, room - surplus_within(room))


def surplus_connections() -> int:
    """Return how many surplus connections the limit on open files allows."""
    return surplus_within(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES)


def surplus_within(room: int) -> int:
    return min(SURPLUS_CONNECTIONS, room // 2)


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
        self._half_closed_timer: asyncio.TimerHandle | None = None
        self._is_probed = False
        self._is_offer = False  # whether the request that is being parsed offers to upgrade the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        beyond = len(self.connections) - self._limits.max_connections
        self._is_surplus = beyond > 0
        surplus = self._limits.surplus
        if beyond > (SURPLUS_CONNECTIONS if surplus is None else surplus):
            self._refuse("too_many_connections")
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_write_timer()
        if self._half_closed_timer is not None:
            self._half_closed_timer.cancel()
        super().connection_lost(exc)
        if not self._is_answered:
            get_context(self.cycle.scope).leave()  # type: ignore[arg-type]  # a TypedDict is a dict

    def data_received(self, data: bytes) -> None:
        self._began = False
        self._unset_keepalive_if_required()
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError as error:
            self.send_400_response(str(error))
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

    def _parse(self, data: memoryview) -> None:
        """Parse what arrived. An offer to upgrade the connection, such as Java's and curl's of HTTP/2, is ignored.

        The parser takes the message of an offer to end with its headers, and what follows to be of another protocol.
        Here the request is parsed again, without its offer, and what follows is its body.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as end:
                if not self._is_offer:
                    return  # it is refused, and so is what follows
                data = data[end.args[0] :]
                method, version = self.parser.get_method(), self.parser.get_http_version().encode()
                head = [b"%s %s HTTP/%s" % (method, self.url, version)]
                head += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
                self._is_offer = False
                self.parser = httptools.HttpRequestParser(self)
                # As uvicorn's: what follows `Connection: close` is ignored.
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(b"\r\n".join([*head, b"", b""]))
            else:
                return

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's returns nothing
        """Keep the connection of a client that sent all it has to send until its reply is written (a half-close).

        A client that has gone looks the same. It is noticed by its refusal of an interim reply, which every client
        must be able to skip, and which is sent only if the reply takes time.
        """
        if self._is_answered or self._stage is not Stage.IDLE:
            return False
        self.cycle.keep_alive = False
        if self._half_closed_timer is None:
            self._half_closed_timer = self.loop.call_later(HALF_CLOSED_S, self._probe_half_closed)
        return True

    def _probe_half_closed(self) -> None:
        if self._is_answered or self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        is_next = not self.pipeline and not self.cycle.response_started
        if is_next and not self._is_probed and self.scope["http_version"] != "1.0":
            self._is_probed = True
            self.transport.write(INTERIM)
        self._half_closed_timer = self.loop.call_later(HALF_CLOSED_S, self._probe_half_closed)

    def on_message_begin(self) -> None:
        self._enter(Stage.HEADERS)
        self._began, self._header_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        is_too_large = size > self._limits.max_header_bytes
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT" and not is_too_large:
            self._is_offer = True  # see `_parse`
            return
        self._enter(Stage.BODY)
        if is_too_large:
            get_context(self.scope).refusal = "headers_too_large"  # type: ignore[arg-type]  # a TypedDict is a dict
        elif self._is_surplus:
            get_context(self.scope).refusal = "too_many_connections"  # type: ignore[arg-type]  # a TypedDict is a dict
        super().on_headers_complete()
        if self.scope["method"] == "POST":
            self.cycle.transport = ReplyWriter(self.transport)  # type: ignore[assignment]  # it has what a cycle needs

    def on_message_complete(self) -> None:
        if self._is_offer:
            return
        self._enter(Stage.IDLE)
        get_context(self.scope).is_whole = True  # type: ignore[arg-type]  # a TypedDict is a dict
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


class ReplyWriter:
    """Writes the head of a reply together with the first part of its body: one call of the kernel, one packet.

    For a reply that has a body. It is what a cycle of uvicorn calls of its transport.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.close, self.is_closing = transport.close, transport.is_closing
        self._write = transport.write
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if data == INTERIM:
            self._write(data)
        elif self._head is None:
            self._head = data
        else:
            self._write(self._head + data)
            self._head = b""


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
