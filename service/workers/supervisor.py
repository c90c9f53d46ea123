"""Start, replace and stop the worker processes, with one queue and one engine for each bundle in this process."""

import asyncio
import signal
import socket
import tempfile
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
    """Own the queues and the engines, and keep the workers running, until a signal to stop. Return 0.

    Raises InvalidBundle, EngineUnavailable, InvalidSettings if they cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="tinyrm-") as folder, listen(settings) as listener:
        share_metrics(Path(folder))
        queues = QueueServers(settings, Path(folder))
        for bundle in bundle_folders(settings):
            await queues.start(bundle)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, Reload(queues.reload).request)
        process_metrics = ProcessMetrics(queues.metrics, "service", queues.engine_pids)
        reporting = run_in_background(process_metrics.run(), "process metrics")
        await run_workers(settings, queues, listener)
        reporting.cancel()
        await queues.stop()
    return 0


class QueueServers:
    """A queue and an engine for each bundle.

    runtime: folder for the Unix sockets.
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
        """Open the folders again and serve new revisions. If one cannot be opened or started, the old one stays."""
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
    """Return the listening socket of all workers. Raises InvalidSettings if the address cannot be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidSettings(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    log.info("listening", host=settings.host, port=listener.getsockname()[1])
    return listener


async def run_workers(settings: Settings, queues: QueueServers, listener: socket.socket) -> None:
    """Keep the workers running until SIGTERM or SIGINT, and replace each one that ends.

    Then each gets `drain_timeout_s` to end. A second signal makes them end at once.
    """
    stopping = asyncio.Event()
    running: set[ChildProcess] = set()

    async def start() -> ChildProcess:
        child = ChildProcess(worker.command(listener.fileno(), queues.paths), pass_fds=[listener.fileno()])
        running.add(child)
        return child

    def on_end(child: ChildProcess) -> None:
        running.discard(child)
        forget_process(child.pid)
        log.error("worker ended", code=child.ended.result())

    def stop() -> None:
        stopping.set()
        # The last worker to exit accepts the connections in the listener's queue, but only if no other process holds
        # the listener open; otherwise they would be reset.
        listener.close()
        for child in running:
            child.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    supervisors = [
        run_in_background(
            supervise(start, on_end, name="worker", first_delay_s=FIRST_DELAY_S, max_delay_s=MAX_DELAY_S),
            "worker supervisor",
        )
        for _ in range(settings.workers)
    ]
    await stopping.wait()
    for supervisor in supervisors:
        supervisor.cancel()
    await asyncio.gather(*(child.stop(settings.drain_timeout_s + GRACE_S) for child in running))
