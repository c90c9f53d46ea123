"""A server on a local port, and requests to it on one connection. Standard library only."""

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 180
RUN_TIMEOUT_S = 600


class Server:
    """A started process that serves HTTP on `port`; `close` ends it.

    ready: a path that returns 200 once it serves.
    log: what it prints goes there; None leaves it to our own output.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], port: int, ready: str, log: Path | None = None
    ) -> None:
        self.port = port
        self._ready = ready
        with log.open("ab") if log else nullcontext() as output:
            self._popen = subprocess.Popen(  # noqa: S603  # the commands are those of the workers
                command,
                env=os.environ | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait(self) -> None:
        """Wait until it serves. Raises RuntimeError if it exits or does not start in time."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                raise RuntimeError(f"the server exited with {self._popen.returncode}; see its log")
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                connection.request("GET", self._ready)
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the server did not start within {START_TIMEOUT_S} s")

    def connect(self) -> http.client.HTTPConnection:
        """Return a new connection, which the caller keeps for several requests."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=RUN_TIMEOUT_S)
        connection.connect()
        return connection

    def close(self) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> Any:
    """Return the reply's JSON. Raises RuntimeError with the reply unless it succeeds."""
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{reply.status}: {text[:200]!r}")
    return json.loads(text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
