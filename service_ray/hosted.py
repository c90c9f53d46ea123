"""An ASGI application without a server: a request in, a reply out, as plain values that travel between processes."""

import asyncio
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope
from uvicorn.lifespan.on import LifespanOn

Headers = list[tuple[bytes, bytes]]


class RawRequest(NamedTuple):
    """An HTTP request as it came; path and query are not decoded further."""

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
    """An HTTP reply, whole."""

    status: int
    headers: Headers
    body: bytes


class Hosted:
    """An application between its startup and its shutdown, both in the event loop that calls them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._lifespan = LifespanOn(uvicorn.Config(app, lifespan="on", log_config=None))

    async def start(self) -> None:
        """Raises RuntimeError if the application does not start; its log says why."""
        await self._lifespan.startup()
        if self._lifespan.should_exit:
            raise RuntimeError("the application did not start")

    async def answer(self, request: RawRequest) -> RawReply:
        """Cancelled, as when its client has left, the application's own handling is cancelled with it."""
        return await collected(self._app, request.scope(dict(self._lifespan.state)), body_of(request.body))

    async def stop(self) -> None:
        await self._lifespan.shutdown()


async def collected(app: ASGIApp, scope: Scope, receive: Receive) -> RawReply:
    """What the application sends, as one reply. An error of its own after it has begun one changes nothing."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        await app(scope, receive, send)
    except Exception:
        # Starlette raises an error again after it has answered it with a 500, so that a server can log it.
        if not sent:
            raise
    start, *rest = sent
    return RawReply(start["status"], list(start.get("headers", ())), b"".join(part.get("body", b"") for part in rest))


def body_of(content: bytes) -> Receive:
    """The body, and then nothing for as long as the request is answered."""
    messages: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return receive
