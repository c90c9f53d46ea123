"""Run an ASGI application without a server, with requests and replies as values that processes can exchange."""

import asyncio
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope

# Not a public API of uvicorn: tests/ray/test_parts.py runs an application's startup and shutdown with it.
from uvicorn.lifespan.on import LifespanOn

Headers = list[tuple[bytes, bytes]]


class RawRequest(NamedTuple):
    """An HTTP request as it arrived; path and query are not parsed."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes = b""
    client: tuple[str, int] | None = None

    def scope(self, state: dict[str, Any]) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": self.headers,
            "client": self.client,
            "server": None,
            "state": state,
        }


class RawReply(NamedTuple):
    """A complete HTTP reply."""

    status: int
    headers: Headers
    body: bytes


class AsgiRunner:
    """Runs an application: its startup, its requests and its shutdown, in the event loop of the caller."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._lifespan = LifespanOn(uvicorn.Config(app, lifespan="on", log_config=None))

    async def start(self) -> None:
        """Run the startup. Raises RuntimeError if it fails; the log has the reason."""
        await self._lifespan.startup()
        if self._lifespan.should_exit:
            raise RuntimeError("the application did not start")

    async def call(self, request: RawRequest) -> RawReply:
        """Return the reply. If the client disconnects, this call and the application's handler are cancelled."""
        return await collect_reply(self._app, request.scope(dict(self._lifespan.state)), make_receive(request.body))

    async def stop(self) -> None:
        await self._lifespan.shutdown()


async def collect_reply(app: ASGIApp, scope: Scope, receive: Receive) -> RawReply:
    """Return the messages of the application as one reply. An error after the reply has begun is ignored."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        await app(scope, receive, send)
    except Exception:
        # After its 500 reply, Starlette raises the error again so that a server can log it.
        if not sent:
            raise
    start, *rest = sent
    return RawReply(start["status"], list(start.get("headers", ())), b"".join(part.get("body", b"") for part in rest))


def make_receive(body: bytes) -> Receive:
    """Return a `receive` that returns the body, and then waits for as long as the handler runs."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return receive
