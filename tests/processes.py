"""`python -m service` as a real process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import REPOSITORY

STARTUP_TIMEOUT_S = 60


@dataclass(frozen=True)
class Service:
    """A running service process."""

    process: "subprocess.Popen[str]"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=30)

    def terminate(self, timeout_s: float = 30) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def start_process(model: Path, port: int, **settings: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"TINYRM_MODEL": str(model), "TINYRM_PORT": str(port)} | settings
    return subprocess.Popen(
        [sys.executable, "-m", "service"], cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True
    )


@contextmanager
def running_service(model: Path, **settings: str) -> Iterator[Service]:
    """A service that is ready; killed at the end if it still runs."""
    port = free_port()
    service = Service(start_process(model, port, **settings), port)
    try:
        wait_until_ready(service)
        yield service
    finally:
        service.process.kill()
        service.process.communicate()


def wait_until_ready(service: Service) -> None:
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    while time.monotonic() < deadline and service.process.poll() is None:
        try:
            if service.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    service.process.kill()
    raise AssertionError(f"the service did not become ready: {service.process.communicate()[1]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
