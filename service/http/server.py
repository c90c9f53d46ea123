"""uvicorn with the shutdown that an orchestrator expects: finish the accepted work, then exit with code 0."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from service.http.connections import ConnectionLimits, allow_open_files, end_keep_alive, make_protocol
from service.settings import Settings

# uvicorn's own timeout starts after ours and must not end before every request has its reply.
GRACE_S = 2
# A request that was sent before its client could know of the shutdown still gets a reply.
LINGER_S = 0.5
# Time for the request on a connection that was only just accepted to arrive.
LATE_REQUEST_S = 0.1


class Server(uvicorn.Server):
    """A server that drains before it stops; while it drains it still listens, and new work is refused with a reply.

    drain: finishes the accepted work.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Coroutine[None, None, None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers: the command does, and calls `stop`.

        uvicorn's would raise the signal again after the shutdown, so that the process ends as if it had been killed.
        """
        yield

    def stop(self) -> None:
        """Drain and stop; called a second time, stop at once."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain_and_stop())
        else:
            self.force_exit = self.should_exit = True

    async def _drain_and_stop(self) -> None:
        end_keep_alive(self.server_state.connections)
        try:
            await asyncio.gather(self._drain(), asyncio.sleep(LINGER_S))
        finally:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Do what uvicorn does, but first accept the connections that the kernel still holds: it would reset them."""
        loop = asyncio.get_running_loop()
        for connection in self._close_listeners(sockets or []):
            await loop.connect_accepted_socket(partial(make_protocol, self), connection)
        await asyncio.sleep(LATE_REQUEST_S)
        await super().shutdown(sockets)

    def _close_listeners(self, sockets: list[socket.socket]) -> list[socket.socket]:
        """Stop listening, and return the connections that the kernel had made by then but the server not accepted."""
        # A duplicate keeps the kernel's queue of connections until it is empty.
        copies = [socket.socket(fileno=os.dup(one.fileno())) for server in self.servers for one in server.sockets]
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        connections = []
        for copy in copies:
            copy.setblocking(False)
            with copy, suppress(BlockingIOError):
                while True:
                    connections.append(copy.accept()[0])
        return connections


def make_server(app: ASGIApp, settings: Settings, drain: Callable[[], Coroutine[None, None, None]]) -> Server:
    """Return a server that is not started yet."""
    limits = ConnectionLimits(
        max_connections=allow_open_files(settings.max_connections),
        max_header_bytes=settings.max_header_bytes,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_timeout_s) + GRACE_S,
        **limits.uvicorn_options(),
    )
    return Server(config, drain)
