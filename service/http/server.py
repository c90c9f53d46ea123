"""uvicorn, leaving on SIGTERM as an orchestrator expects: drain, answer everybody, exit code 0."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from service.app import create_app
from service.http.connections import Limits, allow_open_files
from service.scoring.models import Deployment
from service.settings import Settings

# uvicorn's own patience begins with ours and must not end before everybody has their answer.
GRACE_S = 2
# A request that was sent before its client could know gets an answer and not a closed door.
LINGER_S = 0.5
# A request is on its way to a connection that was just accepted.
HEARING_S = 0.1


class Server(uvicorn.Server):
    """Calls `drain` when asked to stop, and listens until it is done: who still comes is told to go elsewhere."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Coroutine[None, None, None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._leaving: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again after its shutdown, so that the process would die of it; a clean exit is what
        # orchestrators expect of a clean shutdown.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        yield

    def stop(self) -> None:
        """The first signal drains, the second leaves at once."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())
        else:
            self.force_exit = self.should_exit = True

    async def _leave(self) -> None:
        self._keep_no_connection()
        try:
            await asyncio.gather(self._drain(), asyncio.sleep(LINGER_S))
        finally:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but whoever had connected is heard: it would reset their connections."""
        late = self._close_doors(sockets or [])
        loop = asyncio.get_running_loop()
        for connection in late:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(HEARING_S)
        await super().shutdown(sockets)

    def _close_doors(self, sockets: list[socket.socket]) -> list[socket.socket]:
        """Stop listening. The connections that the kernel had made by then and nobody had accepted."""
        # A copy holds a door open until nobody stands in it.
        doors = [socket.socket(fileno=os.dup(door.fileno())) for server in self.servers for door in server.sockets]
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        return [connection for door in doors for connection in _last_ones(door)]

    def _protocol(self) -> asyncio.Protocol:
        config = self.config
        return config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn itself does it
            config=config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def _keep_no_connection(self) -> None:
        """Each ends with the reply that is awaited on it: a request on one that is being closed would be lost."""
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle and not cycle.response_complete:
                cycle.keep_alive = False


def _last_ones(door: socket.socket) -> list[socket.socket]:
    """Accept all who wait there, then close it."""
    connections = []
    door.setblocking(False)
    with door, suppress(BlockingIOError):
        while True:
            connections.append(door.accept()[0])
    return connections


def server_of(settings: Settings, deployment: Deployment) -> Server:
    """A server that is not started, over models that are."""

    async def built(_: Settings) -> Deployment:
        return deployment

    async def drain() -> None:
        await deployment.drain(settings.drain_timeout_s)

    config = uvicorn.Config(
        create_app(settings, built),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_timeout_s) + GRACE_S,
        **limits_of(settings).options(),
    )
    return Server(config, drain)


def limits_of(settings: Settings) -> Limits:
    return Limits(
        max_connections=allow_open_files(settings.max_connections),
        max_header_bytes=settings.max_header_bytes,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
    )
