"""Several front processes before one queue and one engine: started, replaced when they end, and stopped together."""

import asyncio
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import structlog

from service.app import create_metrics
from service.engine.backend import start_backend
from service.http.server import GRACE_S
from service.metrics import forget_process, share_metrics
from service.process_metrics import ProcessMetrics
from service.scoring.models import Reload, bundle_folders, open_bundle
from service.settings import Settings
from service.workers import worker as front
from service.workers.queue_server import Hub
from tinyrm.bundle import Bundle
from tinyrm.errors import InvalidSettings, TinyRMError

log = structlog.get_logger("tinyrm")

BACKLOG = 4096
RESTART_DELAY_S = 0.5


async def serve_with_workers(settings: Settings) -> int:
    """Own the queues and the engines, and keep the fronts running, until asked to stop.

    Raises InvalidBundle, EngineUnavailable, InvalidSettings if that cannot begin.
    """
    with tempfile.TemporaryDirectory(prefix="tinyrm-") as folder, listen(settings) as listener:
        share_metrics(Path(folder))
        hubs = Hubs(settings, Path(folder))
        for bundle in bundle_folders(settings):
            await hubs.start(bundle)
        fronts = Fronts(lambda: front.command(listener.fileno(), hubs.paths), listener)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, Reload(hubs.reload).request)
        watching = asyncio.create_task(ProcessMetrics(hubs.metrics, "service", hubs.engine_pids).run())
        await fronts.run(settings.workers, settings.drain_timeout_s + GRACE_S)
        watching.cancel()
        await hubs.stop()
    return 0


class Hubs:
    """A queue and an engine for each bundle, and where fronts find them."""

    def __init__(self, settings: Settings, runtime: Path) -> None:
        self.paths: dict[Path, Path] = {}
        self._settings, self._runtime = settings, runtime
        self.metrics = create_metrics(settings)
        self._hubs: dict[Path, tuple[str, Hub]] = {}
        self._started = 0

    async def start(self, folder: Path) -> None:
        await self._serve(folder, open_bundle(self._settings, folder))

    async def reload(self) -> None:
        """Serve what the folders hold now; what cannot be opened or started leaves the old one in its place."""
        for folder, (identity, old) in list(self._hubs.items()):
            try:
                bundle = await asyncio.to_thread(open_bundle, self._settings, folder)
                if bundle.manifest.identity == identity:
                    log.info("unchanged", model=identity)
                    continue
                await self._serve(folder, bundle)
            except TinyRMError as error:
                log.error("cannot reload", folder=str(folder), type=error.type, reason=str(error))
                continue
            await old.move(self.paths[folder], self._settings.drain_timeout_s)
            await old.stop()
            log.info("reloaded", model=bundle.manifest.identity, instead_of=identity)

    def engine_pids(self) -> list[int]:
        return [hub.engine_pid for _, hub in self._hubs.values() if hub.engine_pid]

    async def stop(self) -> None:
        for _, hub in self._hubs.values():
            await hub.stop()

    async def _serve(self, folder: Path, bundle: Bundle) -> None:
        hub = Hub(await start_backend(self._settings, bundle, self.metrics))
        self._started += 1
        path = self._runtime / f"hub-{self._started}"
        await hub.start(path)
        self._hubs[folder], self.paths[folder] = (bundle.manifest.identity, hub), path


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
    """Processes of one command, as it is when each begins, with one listener. One that ends by itself is replaced."""

    def __init__(self, command: Callable[[], list[str]], listener: socket.socket) -> None:
        self._command, self._listener = command, listener
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
            process = subprocess.Popen(self._command(), pass_fds=[self._listener.fileno()])  # noqa: ASYNC220, S603
            self._running[place] = process
            code = await asyncio.to_thread(process.wait)
            del self._running[place]
            forget_process(process.pid)
            if not self._stopping.is_set():
                log.error("front ended", code=code)
                await asyncio.sleep(RESTART_DELAY_S)

    def _stop(self) -> None:
        self._stopping.set()
        # The last front to leave closes the door, and accepts who stands in it: nobody would, were it open any longer.
        self._listener.close()
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
