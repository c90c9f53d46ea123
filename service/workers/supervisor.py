"""Several worker processes before one queue and one engine for each bundle: started, replaced and stopped together."""

import asyncio
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import structlog

from service.app import create_metrics
from service.engine.backend import start_backend
from service.engine.supervisor import ChildProcess, run_in_background, supervise
from service.http.server import GRACE_S
from service.metrics import forget_process, share_metrics
from service.process_metrics import ProcessMetrics
from service.scoring.models import Reload, bundle_folders, open_bundle
from service.settings import Settings
from service.workers import worker
from service.workers.queue_server import QueueServer
from tinyrm.bundle import Bundle
from tinyrm.errors import InvalidSettings, TinyRMError

log = structlog.get_logger("tinyrm")

BACKLOG = 4096
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 2.0


async def serve_with_workers(settings: Settings) -> int:
    """Own the queues and the engines, and keep the workers running, until a signal to stop.

    Raises InvalidBundle, EngineUnavailable, InvalidSettings if that cannot begin.
    """
    with tempfile.TemporaryDirectory(prefix="tinyrm-") as folder, listen(settings) as listener:
        share_metrics(Path(folder))
        queues = QueueServers(settings, Path(folder))
        for bundle in bundle_folders(settings):
            await queues.start(bundle)
        workers = WorkerPool(lambda: worker.command(listener.fileno(), queues.paths), listener)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, Reload(queues.reload).request)
        watching = run_in_background(
            ProcessMetrics(queues.metrics, "service", queues.engine_pids).run(), "process metrics"
        )
        await workers.run(settings.workers, settings.drain_timeout_s + GRACE_S)
        watching.cancel()
        await queues.stop()
    return 0


class QueueServers:
    """A queue and an engine for each bundle.

    paths: bundle folder -> Unix socket of its queue.
    """

    def __init__(self, settings: Settings, runtime: Path) -> None:
        self.paths: dict[Path, Path] = {}
        self._settings, self._runtime = settings, runtime
        self.metrics = create_metrics(settings)
        self._served: dict[Path, tuple[str, QueueServer]] = {}
        self._started = 0

    async def start(self, folder: Path) -> None:
        await self._serve(folder, open_bundle(self._settings, folder))

    async def reload(self) -> None:
        """Serve what the folders hold now; what cannot be opened or started leaves the old one in its place."""
        for folder, (identity, old) in list(self._served.items()):
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
        return [server.engine_pid for _, server in self._served.values() if server.engine_pid]

    async def stop(self) -> None:
        for _, server in self._served.values():
            await server.stop()

    async def _serve(self, folder: Path, bundle: Bundle) -> None:
        server = QueueServer(await start_backend(self._settings, bundle, self.metrics))
        self._started += 1
        path = self._runtime / f"queue-{self._started}"
        await server.start(path)
        self._served[folder], self.paths[folder] = (bundle.manifest.identity, server), path


def listen(settings: Settings) -> socket.socket:
    """Return the one socket that all workers accept from. Raises InvalidSettings if the address cannot be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidSettings(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    log.info("listening", host=settings.host, port=listener.getsockname()[1])
    return listener


class WorkerPool:
    """Processes with one listener. One that ends by itself is replaced.

    command: of the next process; it may change.
    """

    def __init__(self, command: Callable[[], list[str]], listener: socket.socket) -> None:
        self._command, self._listener = command, listener
        self._stopping = asyncio.Event()
        self._running: set[ChildProcess] = set()

    async def run(self, count: int, timeout_s: float) -> None:
        """Run until SIGTERM or SIGINT; then each process gets `timeout_s` to end. A second signal ends them at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        supervisors = [
            run_in_background(
                supervise(
                    self._start, self._on_end, name="worker", first_delay_s=FIRST_DELAY_S, max_delay_s=MAX_DELAY_S
                ),
                "worker supervisor",
            )
            for _ in range(count)
        ]
        await self._stopping.wait()
        for supervisor in supervisors:
            supervisor.cancel()
        await asyncio.gather(*(child.stop(timeout_s) for child in self._running))

    async def _start(self) -> ChildProcess:
        child = ChildProcess(self._command(), pass_fds=[self._listener.fileno()])
        self._running.add(child)
        return child

    def _on_end(self, child: ChildProcess) -> None:
        self._running.discard(child)
        forget_process(child.pid)
        log.error("worker ended", code=child.ended.result())

    def _stop(self) -> None:
        self._stopping.set()
        # The last worker to exit accepts the backlog of the listener, provided that no other process holds it open:
        # otherwise those connections would be reset.
        self._listener.close()
        for child in self._running:
            child.send_signal(signal.SIGTERM)
