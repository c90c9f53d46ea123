"""uvicorn with the shutdown that an orchestrator expects: finish accepted work, then exit with code 0."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from service.http.connections import (
    ConnectionLimits,
    allow_open_files,
    end_keep_alive,
    make_protocol,
    surplus_connections,
)
from service.settings import Settings

# Added to uvicorn's own timeout, which must not pass before every request has its reply.
GRACE_S = 2
# Requests that were sent before the client could notice the shutdown still get a reply within this time.
LINGER_S = 0.5
# Time for a request to arrive on a connection that was accepted last.
LATE_REQUEST_S = 0.1


class Server(uvicorn.Server):
    """A server that drains before it stops. While it drains, it still listens and refuses new work with a reply.

    drain: finishes accepted work.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Coroutine[None, None, None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers: `service.__main__` installs its own, which call `stop`.

        uvicorn's handlers raise the signal again after the shutdown, so the process would not exit with code 0.
        """
        yield

    def stop(self) -> None:
        """Drain and stop; a second call stops at once."""

        async def drain_and_stop() -> None:
            end_keep_alive(self.server_state.connections)
            try:
                await asyncio.gather(self._drain(), asyncio.sleep(LINGER_S))
            finally:
                self.should_exit = True

        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(drain_and_stop())
        else:
            self.force_exit = self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as uvicorn does, but first accept the connections in the kernel's queue, which would be reset."""
        # A duplicate of the listener keeps the kernel's queue until it is empty.
        copies = [socket.socket(fileno=os.dup(one.fileno())) for server in self.servers for one in server.sockets]
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        connections = []
        for copy in copies:
            copy.setblocking(False)
            with copy, suppress(BlockingIOError):
                while True:
                    connections.append(copy.accept()[0])
        for connection in connections:
            await asyncio.get_running_loop().connect_accepted_socket(partial(make_protocol, self), connection)
        await asyncio.sleep(LATE_REQUEST_S)
        await super().shutdown(sockets)


def make_server(app: ASGIApp, settings: Settings, drain: Callable[[], Coroutine[None, None, None]]) -> Server:
    """Return a server that is not started yet."""
    limits = ConnectionLimits(
        max_connections=allow_open_files(settings.max_connections),
        max_header_bytes=settings.max_header_bytes,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        keep_alive_s=settings.keep_alive_s,
        surplus=surplus_connections(),
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
