"""What happens around every request: its body is bounded and is JSON, and it is given up with its client."""

import asyncio
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.schemas import ErrorBody
from service.errors import OverloadStatus, error_response, refusal
from service.http.nesting import MAX_NESTING, is_too_deep

MIB = 2**20
# A refused body is read to its end, or the client would see a broken connection instead of the answer.
MAX_DISCARDED_BYTES = 64 * MIB


@dataclass(slots=True)
class Body:
    """What has arrived of one, and why the rest is thrown away, if it is."""

    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    held: int = 0
    refused: Response | None = None


class JsonBodies:
    """Bodies up to `max_body_bytes`, taken as JSON whatever their declared type: plain `curl -d` declares a form.

    Together they hold `max_buffered_bytes` at most, or many slow uploads would take all memory.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        max_buffered_bytes: int,
        timeout_s: float,
        overload_status: OverloadStatus,
    ) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_buffered_bytes = max_buffered_bytes
        self.timeout_s = timeout_s
        self.overload_status = overload_status
        self._buffered_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = Body()
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._read(body, receive, scope["path"])
        except TimeoutError:
            message = f"the body was not complete after {self.timeout_s:g} s"
            body.refused = refusal("body_timeout", message, {"Connection": "close"})
        try:
            await self._answer(body, scope, receive, send)
        finally:
            self._release(body)

    async def _answer(self, body: Body, scope: Scope, receive: Receive, send: Send) -> None:
        content = b"".join(body.chunks)
        if not body.refused and is_too_deep(content):
            body.refused = refusal("invalid_json", f"the body nests deeper than {MAX_NESTING} levels")
        if body.refused:
            await body.refused(scope, receive, send)
            return
        body.chunks.clear()
        MutableHeaders(scope=scope)["content-type"] = "application/json"
        whole: Message = {"type": "http.request", "body": content, "more_body": False}
        await self.app(scope, _after(whole, receive), send)

    async def _read(self, body: Body, receive: Receive, path: str) -> None:
        """To its end, even if it is refused: see MAX_DISCARDED_BYTES."""
        more = True
        while more and body.size <= MAX_DISCARDED_BYTES:
            message = await receive()
            more = message.get("more_body", False)
            self._take(body, message.get("body", b""), path)

    def _take(self, body: Body, chunk: bytes, path: str) -> None:
        body.size += len(chunk)
        if body.size > self.max_body_bytes:
            limit = f"{self.max_body_bytes / MIB:g} MiB"
            body.refused = refusal("body_too_large", f"the body is larger than {limit}; send less at once")
        elif self._buffered_bytes + len(chunk) > self.max_buffered_bytes:
            message = f"{self._buffered_bytes} bytes of requests are being read or answered; retry after Retry-After"
            overloaded = ErrorBody(type="overloaded", message=message)
            body.refused = error_response(self.overload_status(path), overloaded, {"Retry-After": "1"})
        if body.refused:
            self._release(body)
        else:
            body.chunks.append(chunk)
            body.held += len(chunk)
            self._buffered_bytes += len(chunk)

    def _release(self, body: Body) -> None:
        body.chunks.clear()
        self._buffered_bytes -= body.held
        body.held = 0


def _after(first: Message, receive: Receive) -> Receive:
    """That message once more, then whatever the server says next (a disconnect)."""
    pending = [first]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message


class GiveUpWithClient:
    """Ends the handling of a request whose client has gone: what it waits for is dropped before it costs compute."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        first = await receive()
        this, has_left = asyncio.current_task(), False

        def leave(_: "asyncio.Task[None]") -> None:
            nonlocal has_left
            has_left = True
            if this:
                this.cancel()

        watching = asyncio.create_task(_gone(receive))
        watching.add_done_callback(leave)
        try:
            await self.app(scope, _after(first, receive), send)
        except asyncio.CancelledError:
            if not has_left or (this and this.uncancel()):
                raise
        finally:
            this = None  # `leave` may be on its way
            watching.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
