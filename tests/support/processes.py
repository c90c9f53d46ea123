"""`python -m service` as a real process, for every test that needs one."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.service_process import free_port, launch
from tests.conftest import REPOSITORY

STARTER = REPOSITORY / "models" / "starter"
# The machine that runs the tests may be busy; nothing here takes as long by itself.
PATIENCE_S = 60


@dataclass(frozen=True)
class Process:
    """A running service."""

    popen: subprocess.Popen[bytes]
    port: int
    client: httpx.Client

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def stop(self, within_s: float = PATIENCE_S) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(within_s)

    def is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def started(model: Path, port: int = 0, **settings: object) -> Iterator[Process]:
    """A service that is ready. Killed at the end if it still runs. port: 0 for any free one."""
    service = launch({"model": model, **settings}, Path(os.devnull), port or free_port())
    try:
        with new_client(service.port) as client:
            process = Process(service.popen, service.port, client)
            wait_until_ready(process)
            yield process
    finally:
        service.clear_away()


def new_client(port: int) -> httpx.Client:
    # Every request has a connection of its own, so that the end of an idle one cannot be mistaken for a lost request.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    base = f"http://127.0.0.1:{port}"
    return httpx.Client(base_url=base, timeout=PATIENCE_S, limits=limits, trust_env=False)


def wait_until_ready(process: Process) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.popen.poll() is None, f"left with {process.popen.returncode} before it was ready"
        with suppress(httpx.TransportError):
            if process.get("/readyz").status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail("not ready in time")
