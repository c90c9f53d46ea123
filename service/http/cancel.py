"""Cancel a request whose client has disconnected."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.body import replay


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


async def wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
