"""Cancel a request whose client has disconnected, and reply to one that the server cancels."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import error_response, get_status
from service.http.context import get_context
from service.metrics import CLIENT_LEFT
from tinyrm.api import ErrorBody
from tinyrm.errors import NOT_FINISHED, ShuttingDown


class CancelOnDisconnect:
    """Cancels the handler when the client disconnects, so that queued work is dropped before it costs compute.

    The connection notices it: `BoundHttpProtocol`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        context, handler, is_cancelled = get_context(scope), asyncio.current_task(), False
        if context.has_left or handler is None:
            return

        def cancel() -> None:
            nonlocal is_cancelled
            is_cancelled = True
            handler.cancel()

        context.on_leave = cancel
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if not is_cancelled or handler.uncancel():
                raise
        finally:
            context.on_leave = None


class CutMiddleware:
    """Replies to a request that the server cancels because its time to stop has passed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if scope["type"] != "http" or get_context(scope).stats.status != CLIENT_LEFT:
                raise  # the reply has begun
            error = ShuttingDown(NOT_FINISHED)
            headers = {"Connection": "close", "Retry-After": "1"}
            await error_response(get_status(error), ErrorBody.of(error), headers)(scope, receive, send)
