"""uvicorn with the shutdown that an orchestrator expects: finish accepted work, then exit with code 0."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from service.http.connections import (
    MIN_BACKLOG,
    ConnectionLimits,
    allow_open_files,
    end_keep_alive,
    make_protocol,
    surplus_connections,
)
from service.settings import PREFIX, Settings
from tinyrm.errors import InvalidSettings

log = structlog.get_logger("tinyrm")

# Added to uvicorn's own timeout, which must not pass before every request has its reply.
GRACE_S = 2
# Requests that were sent before the client could notice the shutdown still get a reply within this time.
LINGER_S = 0.5
# Time for a request to arrive on a connection that was accepted last.
LATE_REQUEST_S = 0.1
# After a cut, replies are written within this time.
CUT_S = 1.0

Work = Callable[[], Coroutine[None, None, None]]


class Server(uvicorn.Server):
    """A server that drains before it stops. While it drains, it still listens and refuses new work with a reply.

    drain: finishes accepted work.
    cut: makes accepted work fail at once.
    """

    def __init__(self, config: uvicorn.Config, drain: Work, cut: Work) -> None:
        super().__init__(config)
        self._drain, self._cut = drain, cut
        self._draining: asyncio.Task[None] | None = None
        self._cutting: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers: `service.process` installs its own, which call `stop` and `cut`.

        uvicorn's handlers raise the signal again after the shutdown, so the process would not exit with code 0.
        """
        yield

    def stop(self) -> None:
        """Drain and stop. Further calls change nothing."""

        async def drain_and_stop() -> None:
            end_keep_alive(self.server_state.connections)
            try:
                await asyncio.gather(self._drain(), asyncio.sleep(LINGER_S))
            finally:
                self.should_exit = True

        self._draining = self._draining or asyncio.get_running_loop().create_task(drain_and_stop())

    def cut(self) -> None:
        """Stop at once: requests that were accepted get an error."""

        async def cut_and_stop() -> None:
            end_keep_alive(self.server_state.connections)
            try:
                await self._cut()
            finally:
                self.should_exit = True
                await asyncio.sleep(CUT_S)
                self.force_exit = True

        self._cutting = self._cutting or asyncio.get_running_loop().create_task(cut_and_stop())

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


def bind(settings: Settings) -> list[socket.socket]:
    """Return sockets at the address that do not listen yet, so that one in use is known before a model is loaded.

    A name may have several addresses. Raises InvalidSettings if none can be used.
    """
    sockets: list[socket.socket] = []
    port, unusable = settings.port, OSError(errno.EADDRNOTAVAIL, "no address")
    try:
        for family, *_, address in socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM):
            try:
                sockets.append(bind_at(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                unusable = error  # such as ::1 for localhost, on a machine without IPv6
            else:
                port = sockets[-1].getsockname()[1]  # the same for every address, if it was 0
        if not sockets:
            raise unusable
    except OSError as error:
        for bound in sockets:
            bound.close()
        raise InvalidSettings(cannot_listen(settings, error)) from error
    return sockets


def bind_at(family: int, address: tuple[Any, ...]) -> socket.socket:
    """Return a socket at one address. Raises OSError."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def listen(listener: socket.socket, settings: Settings) -> None:
    """Begin to accept connections. Raises InvalidSettings if another process has begun to listen there meanwhile."""
    try:
        listener.listen(MIN_BACKLOG)
    except OSError as error:
        raise InvalidSettings(cannot_listen(settings, error)) from error
    log.info("listening", host=settings.host, port=listener.getsockname()[1])


def cannot_listen(settings: Settings, error: OSError) -> str:
    """Return why the service cannot listen at its address, and what to change."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    # Not the text of the error: asyncio and socket put more into it. A name that is not known has a negative number.
    number = error.errno or 0
    reason = (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()
    return f"cannot listen on {host}:{settings.port}: {reason}; see {PREFIX}HOST and {PREFIX}PORT"


def make_server(app: ASGIApp, settings: Settings, drain: Work, cut: Work) -> Server:
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
    return Server(config, drain, cut)
