"""HTTP/1.1 to one port, cheap enough to offer a service several times what it can take from the same two cores."""

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httptools

# The service closes a connection that was idle for 5 s; one that is about to be closed must not be taken for a lost
# request.
MAX_IDLE_S = 2.0


class Unconnected(Exception):
    """Nobody listens: the request was never sent."""


class NoAnswer(Exception):
    """The request was sent, and the connection ended or the time ran out before there was an answer."""


@dataclass(slots=True)
class Reply:
    """Header names in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def request(path: str, body: bytes = b"", method: str = "POST", headers: dict[str, str] | None = None) -> bytes:
    """A whole request as it travels."""
    fields = {"Host": "127.0.0.1", "Content-Length": str(len(body)), "Content-Type": "application/json"}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (fields | (headers or {})).items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One request at a time. The `on_` methods are what httptools calls."""

    def __init__(self) -> None:
        self.idle_since = time.perf_counter()
        self._transport: Any = None
        self._parser: Any = None
        self._reply = Reply()
        self._answer: asyncio.Future[Reply] | None = None

    @property
    def is_reusable(self) -> bool:
        idle_s = time.perf_counter() - self.idle_since
        return self._transport is not None and not self._transport.is_closing() and idle_s < MAX_IDLE_S

    def ask(self, content: bytes) -> "asyncio.Future[Reply]":
        self._parser, self._reply = httptools.HttpResponseParser(self), Reply()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(content)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(NoAnswer(f"no HTTP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(NoAnswer(f"the connection ended: {exc or 'closed'}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._reply.body += body

    def on_message_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()
        self.idle_since = time.perf_counter()
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._reply)

    def _end(self, error: NoAnswer) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class Client:
    """As many connections as there are requests under way. keep_alive: whether they serve more than one request."""

    def __init__(self, port: int, *, keep_alive: bool = True, timeout_s: float = 30) -> None:
        self.port = port
        self.timeout_s = timeout_s
        self._keep_alive = keep_alive
        self._idle: deque[Connection] = deque()

    async def ask(self, content: bytes) -> Reply:
        """The answer, whatever its status. Raises Unconnected or NoAnswer."""
        connection = self._reused() or await self._connected()
        try:
            async with asyncio.timeout(self.timeout_s):
                reply = await connection.ask(content)
        except TimeoutError:
            connection.close()
            raise NoAnswer(f"no answer within {self.timeout_s:g} s") from None
        except asyncio.CancelledError:
            connection.close()
            raise
        if self._keep_alive and connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _reused(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others grow old and are closed
            if connection.is_reusable:
                return connection
            connection.close()
        return None

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout_s):
                _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
        except (OSError, TimeoutError) as error:
            raise Unconnected(str(error)) from error
        return connection


async def status_of(client: Client, path: str) -> int:
    """Status of a GET; 0 if there is no answer."""
    with suppress(Unconnected, NoAnswer):
        return (await client.ask(request(path, method="GET"))).status
    return 0
