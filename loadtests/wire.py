"""An HTTP/1.1 client for one local port that sends bytes as they are.

It is cheap enough to offer a service several times its capacity from the same two cores, and hostile requests, which no
HTTP library would send, travel through it like any other.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import httptools

# The service closes a connection after 5 s without a request. One that is about to be closed would look like a loss.
MAX_IDLE_S = 2.0


class Unconnected(Exception):
    """No process listens on the port: the request was never sent."""


class NoAnswer(Exception):
    """The request was sent, and the connection ended or the time ran out before the reply was complete."""


@dataclass(slots=True)
class Reply:
    """headers: names in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def request(path: str, body: bytes = b"", method: str = "POST", headers: dict[str, str] | None = None) -> bytes:
    """Return a whole request as it travels."""
    fields = {"Host": "127.0.0.1", "Content-Length": str(len(body)), "Content-Type": "application/json"}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (fields | (headers or {})).items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One request at a time. httptools calls the `on_` methods."""

    def __init__(self) -> None:
        self._idle_since = time.perf_counter()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reply = Reply()
        self._result: asyncio.Future[Reply] | None = None

    @property
    def is_reusable(self) -> bool:
        idle_s = time.perf_counter() - self._idle_since
        return self._transport is not None and not self._transport.is_closing() and idle_s < MAX_IDLE_S

    def send(self, content: bytes) -> "asyncio.Future[Reply]":
        if self._transport is None:
            raise Unconnected("not connected")
        self._parser, self._reply = httptools.HttpResponseParser(self), Reply()
        self._result = asyncio.get_running_loop().create_future()
        self._transport.write(content)
        return self._result

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection ended: {exc or 'closed'}")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._reply.body += body

    def on_message_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()
        self._idle_since = time.perf_counter()
        if not self._parser.should_keep_alive():
            self.close()
        if self._result is not None and not self._result.done():
            self._result.set_result(self._reply)

    def _fail(self, reason: str) -> None:
        if self._result is not None and not self._result.done():
            self._result.set_exception(NoAnswer(reason))


class Client:
    """Opens as many connections as there are requests under way.

    keep_alive: whether a connection serves more than one request.
    """

    def __init__(self, port: int, *, keep_alive: bool = True, timeout_s: float = 30) -> None:
        self.port = port
        self.timeout_s = timeout_s
        self._keep_alive = keep_alive
        self._idle: list[Connection] = []

    async def send(self, content: bytes) -> Reply:
        """Return the reply with any status. Raises Unconnected or NoAnswer."""
        connection = await self._connection()
        try:
            async with asyncio.timeout(self.timeout_s):
                reply = await connection.send(content)
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

    async def get(self, path: str) -> Reply:
        """Return the reply to a GET. Raises Unconnected or NoAnswer."""
        return await self.send(request(path, method="GET"))

    async def status(self, path: str) -> int:
        """Return the status of a GET; 0 if there is no reply."""
        with suppress(Unconnected, NoAnswer):
            return (await self.get(path)).status
        return 0

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _connection(self) -> Connection:
        while self._idle:
            # The one used last: the others exceed MAX_IDLE_S and are closed.
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
            connection.close()
        try:
            async with asyncio.timeout(self.timeout_s):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
        except (OSError, TimeoutError) as error:
            raise Unconnected(str(error)) from error
        return connection
