"""Cancel a request whose client has disconnected, and reply to one that the server cancels."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import CLIENT_LEFT, error_response, get_status
from service.http.body import replay
from service.http.context import get_context
from tinyrm.api import ErrorBody
from tinyrm.errors import NOT_FINISHED, ShuttingDown


class CancelOnDisconnect:
    """Cancels the handler when the client disconnects, so that queued work is dropped before it costs compute."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = await receive()
        handler, has_left = asyncio.current_task(), False

        def cancel(_: "asyncio.Task[None]") -> None:
            nonlocal has_left
            has_left = True
            if handler:
                handler.cancel()

        watcher = asyncio.create_task(wait_for_disconnect(receive))
        watcher.add_done_callback(cancel)
        try:
            await self.app(scope, replay(body, receive), send)
        except asyncio.CancelledError:
            if not has_left or (handler and handler.uncancel()):
                raise
        finally:
            handler = None  # the callback may still be scheduled
            watcher.cancel()


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


async def wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
