"""`python -m service` as a real process, for every test that needs one."""

import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtests.service_process import launch
from tests.support.kept import REPOSITORY
from tests.support.waiting import PATIENCE_S, wait_until

__all__ = ["PATIENCE_S", "STARTER", "Process", "free_port", "new_client", "started"]

STARTER = REPOSITORY / "models" / "starter"


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

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def started(model: Path, port: int = 0, **settings: object) -> Iterator[Process]:
    """Run a service that is ready, and kill it at the end if it still runs. A test that fails shows its log.

    port: 0 for any free one.
    """
    # Measuring the peak is a fifth of a second of work at each start of an engine, and few tests read it.
    settings = {"model": model, "peak_gflops_per_s": 100, **settings}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.log"
        service = launch(settings, log, port or free_port())
        try:
            with new_client(service.port) as client:
                process = Process(service.popen, service.port, client)
                wait_until(process.is_ready, "the service was ready", process=service.popen)
                yield process
        except Exception as error:
            error.add_note(f"The log of the service:\n{log.read_text(errors='replace')[-4000:]}")
            raise
        finally:
            service.clear_away()


def free_port() -> int:
    """Return a port that nothing listens on, below those that the kernel gives to outgoing connections.

    The kernel's own choice could be the source of another process's connection before the service binds it. Drawn apart
    from the seeded numbers: trainings set the same seed in every process of the tests, which would get the same ports.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def new_client(port: int) -> httpx.Client:
    # Every request has a connection of its own, so that the end of an idle one cannot be mistaken for a lost request.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    base = f"http://127.0.0.1:{port}"
    return httpx.Client(base_url=base, timeout=PATIENCE_S, limits=limits, trust_env=False)
