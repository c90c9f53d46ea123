"""Several front processes before one queue and one engine: started, replaced when they end, and stopped together."""

import asyncio
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import structlog

from service import front
from service.backend import start_backend
from service.hub import Hub
from service.metrics import share
from service.server import GRACE_S
from service.settings import InvalidSettings, Settings
from tinyrm.bundle import Bundle

log = structlog.get_logger("tinyrm")

BACKLOG = 4096
RESTART_DELAY_S = 0.5


async def serve_with_workers(settings: Settings) -> int:
    """Own the queue and the engine, and keep the fronts running, until asked to stop.

    Raises InvalidBundle, EngineUnavailable, InvalidSettings if that cannot begin.
    """
    with tempfile.TemporaryDirectory(prefix="tinyrm-") as folder, listen(settings) as listener:
        share(Path(folder))
        backend, _ = await start_backend(settings, Bundle.open(settings.model))
        hub = Hub(backend)
        await hub.start(Path(folder, "hub"))
        fronts = Fronts(front.command(listener.fileno(), Path(folder, "hub")), listener.fileno())
        await fronts.run(settings.workers, settings.drain_timeout_s + GRACE_S)
        await hub.stop()
        await backend.drain(0)
    return 0


def listen(settings: Settings) -> socket.socket:
    """The one socket that all fronts accept from. Raises InvalidSettings if the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidSettings(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    log.info("listening", host=settings.host, port=listener.getsockname()[1])
    return listener


class Fronts:
    """Processes of one command. One that ends by itself is replaced."""

    def __init__(self, command: list[str], descriptor: int) -> None:
        self._command, self._descriptor = command, descriptor
        self._stopping = asyncio.Event()
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    async def run(self, count: int, patience_s: float) -> None:
        """Until SIGTERM or SIGINT; then each gets `patience_s` to leave. A second signal ends them at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        keepers = [asyncio.create_task(self._keep(place)) for place in range(count)]
        await self._stopping.wait()
        await asyncio.wait(keepers, timeout=patience_s)
        for process in self._running.values():
            process.kill()
        await asyncio.gather(*keepers)

    async def _keep(self, place: int) -> None:
        while not self._stopping.is_set():
            process = subprocess.Popen(self._command, pass_fds=[self._descriptor])  # noqa: ASYNC220, S603
            self._running[place] = process
            code = await asyncio.to_thread(process.wait)
            del self._running[place]
            if not self._stopping.is_set():
                log.error("front ended", code=code)
                await asyncio.sleep(RESTART_DELAY_S)

    def _stop(self) -> None:
        self._stopping.set()
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
