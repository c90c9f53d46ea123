"""What happens around every request: its body is bounded and is JSON, its duration is observed."""

import asyncio
import time
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import CLIENT_LEFT, refusal
from service.metrics import ENDPOINTS
from service.nesting import MAX_NESTING, is_too_deep

MIB = 2**20
# Labels come from a fixed set, whatever paths people try.
ENDPOINT_OF_PATH = {f"/v1/{name.replace('_', '/')}": name for name in ENDPOINTS}
# A refused body is read to its end, or the client would see a broken connection instead of the answer.
MAX_DISCARDED_BYTES = 64 * MIB


class JsonBodies:
    """Bodies up to `max_body_bytes`, taken as JSON whatever their declared type: plain `curl -d` declares a form."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                body, too_large = await self._read(receive)
        except TimeoutError:
            message = f"the body was not complete after {self.timeout_s:g} s"
            await refusal("body_timeout", message, {"Connection": "close"})(scope, receive, send)
            return
        refused = self._refusal(body, too_large=too_large)
        if refused:
            await refused(scope, receive, send)
            return
        MutableHeaders(scope=scope)["content-type"] = "application/json"
        whole: Message = {"type": "http.request", "body": body, "more_body": False}
        await self.app(scope, _after(whole, receive), send)

    def _refusal(self, body: bytes, *, too_large: bool) -> Response | None:
        if too_large:
            limit = f"{self.max_body_bytes / MIB:g} MiB"
            return refusal("body_too_large", f"the body is larger than {limit}; send less at once")
        if is_too_deep(body):
            return refusal("invalid_json", f"the body nests deeper than {MAX_NESTING} levels")
        return None

    async def _read(self, receive: Receive) -> tuple[bytes, bool]:
        """The body, and whether it was too large (then what was read is thrown away)."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= self.max_body_bytes:
                chunks.append(chunk)
            else:
                chunks.clear()
            if not message.get("more_body", False) or size > MAX_DISCARDED_BYTES:
                return b"".join(chunks), size > self.max_body_bytes


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
        handling = asyncio.ensure_future(self.app(scope, _after(first, receive), send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait([handling, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Also when this task is cancelled itself: nothing runs on that nobody waits for.
            leaving.cancel()
            if not handling.done():
                handling.cancel()
        with suppress(asyncio.CancelledError):
            await handling


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ObserveRequests:
    """Duration and status of every request, by endpoint."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = CLIENT_LEFT

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            metrics = scope["state"]["deployment"].metrics
            endpoint = ENDPOINT_OF_PATH.get(scope["path"], "other")
            metrics.observe_request(endpoint, status, time.perf_counter() - started)
