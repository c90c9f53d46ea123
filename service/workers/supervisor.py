"""Start, replace and stop the worker processes, with one queue and one engine for each bundle in this process."""

import asyncio
import math
import signal
import socket
import time
from pathlib import Path
from typing import Any

import structlog

from service.app import create_metrics
from service.engine.backend import start_backend
from service.engine.engine_process import GIVE_UP_S
from service.engine.supervisor import ChildProcess, run_in_background, supervise
from service.http.server import CUT_S, GRACE_S, cannot_listen
from service.logs import describe_failure
from service.process import CANNOT_START, FAILED, StopSignals
from service.process_metrics import ProcessMetrics
from service.scoring.models import Reload, bundle_folders, open_bundle
from service.settings import Settings
from service.shared_metrics import forget_process, reserve_metrics, share_metrics
from service.workers import worker
from service.workers.queue_server import MAX_MISSED_PINGS, QueueServer
from service.workers.runtime import runtime_folder
from tinyrm.bundle import Bundle
from tinyrm.errors import InvalidSettings

log = structlog.get_logger("tinyrm")

BACKLOG = 4096
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 2.0
# Time for a worker to start: a second on an idle machine.
START_S = 120.0


async def serve_with_workers(settings: Settings, signals: StopSignals, reload_requested: asyncio.Event) -> int:
    """Own the queues and the engines, and keep the workers running, until a signal to stop. Return the exit code.

    reload_requested: set by a SIGHUP during the start.

    Raises InvalidBundle, EngineUnavailable, InvalidSettings if they cannot be started.
    """
    with runtime_folder() as folder, listen(settings) as listener:
        share_files(folder, settings.workers)
        queues = QueueServers(settings, folder)
        reload = Reload(queues.reload)
        try:
            if not await signals.run_unless_stopped(queues.start()):
                log.info("stopped during the start")
                return signals.exit_code
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.request)
            if reload_requested.is_set():
                reload.request()
            process_metrics = ProcessMetrics(queues.metrics, "service", queues.engine_pids)
            reporting = run_in_background(process_metrics.run(), "process metrics")
            await Workers(settings, queues, listener, signals).run()
            reporting.cancel()
        finally:
            await queues.stop()
    log.info("stopped")
    return signals.exit_code


class QueueServers:
    """A queue and an engine for each bundle.

    runtime: folder for the Unix sockets.
    paths: bundle folder -> Unix socket of its queue.
    connected: process ids of the workers that have connected.
    hung: process ids of workers that do not reply any more.
    """

    def __init__(self, settings: Settings, runtime: Path) -> None:
        self.paths: dict[Path, Path] = {}
        self.runtime = runtime
        self.connected: set[int] = set()
        self.hung: asyncio.Queue[int] = asyncio.Queue()
        self._settings = settings
        self.metrics = create_metrics(settings)
        self._served: dict[Path, QueueServer] = {}
        self._started = 0

    async def start(self) -> None:
        for folder in bundle_folders(self._settings):
            await self._serve(folder, open_bundle(self._settings, folder))

    async def reload(self) -> None:
        """Open the folders again and serve new revisions. If one cannot be opened or started, the old one stays."""
        for folder, old in list(self._served.items()):
            try:
                bundle = await asyncio.to_thread(open_bundle, self._settings, folder)
                if bundle.manifest.identity == old.identity:
                    log.info("unchanged", model=old.identity)
                    continue
                await self._serve(folder, bundle)
            except Exception as error:  # noqa: BLE001  # whatever it is, the old model stays, and one line names it
                log.error("cannot reload", folder=str(folder), **describe_failure(error))
                continue
            await old.move(self.paths[folder], self._settings.drain_timeout_s)
            await old.stop()
            log.info("reloaded", model=bundle.manifest.identity, instead_of=old.identity)

    def engine_pids(self) -> list[int]:
        return [server.engine_pid for server in self._served.values() if server.engine_pid]

    async def stop(self) -> None:
        for server in self._served.values():
            await server.stop()

    async def _serve(self, folder: Path, bundle: Bundle) -> None:
        backend = await start_backend(self._settings, bundle, self.metrics)
        server = QueueServer(bundle, backend, on_connect=self.connected.add, on_hung=self.hung.put_nowait)
        self._started += 1
        path = self.runtime / f"queue-{self._started}"
        try:
            bundle.encoder()  # a worker makes one
            await server.start(path)
        except BaseException:
            await server.stop()
            raise
        self._served[folder], self.paths[folder] = server, path


def share_files(folder: Path, workers: int) -> None:
    """Share the metrics of this process, and reserve the files of all workers. Raises InvalidSettings without room."""
    try:
        share_metrics(folder, "owner")
        for slot in slots(workers):
            reserve_metrics(folder, slot)
    except OSError as error:
        raise InvalidSettings(f"{folder}, see TMPDIR, has no room for the metrics of the workers: {error}") from error


def slots(workers: int) -> list[str]:
    return [f"worker-{number}" for number in range(1, workers + 1)]


def listen(settings: Settings) -> socket.socket:
    """Return the listening socket of all workers. Raises InvalidSettings if the address cannot be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidSettings(cannot_listen(settings, error)) from error
    log.info("listening", host=settings.host, port=listener.getsockname()[1])
    return listener


class Workers:
    """The worker processes. Each has a slot; when it ends, another one takes its slot."""

    def __init__(self, settings: Settings, queues: QueueServers, listener: socket.socket, signals: StopSignals) -> None:
        self._settings, self._queues, self._listener, self._signals = settings, queues, listener, signals
        self._running: dict[ChildProcess, str] = {}
        self._has_served, self._failing_since = False, math.inf

    async def run(self) -> None:
        """Keep the workers running until a signal to stop. Then each gets `drain_timeout_s`; after a cut, none."""
        tasks = [self._supervise(slot) for slot in slots(self._settings.workers)]
        tasks.append(run_in_background(self._kill_hung(), "hung workers"))
        await self._signals.stopped.wait()
        # The last worker to exit accepts the connections in the listener's queue, but only if no other process holds
        # the listener open; otherwise they would be reset.
        self._listener.close()
        for task in tasks:
            task.cancel()
        for child in self._running:
            child.send_signal(signal.SIGTERM)
        timeout_s = self._settings.drain_timeout_s + GRACE_S
        ends = asyncio.ensure_future(asyncio.gather(*(child.stop(timeout_s) for child in self._running)))
        cut = asyncio.ensure_future(self._signals.cut.wait())
        first: list[asyncio.Future[Any]] = [ends, cut]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        if not ends.done():
            await self._queues.stop()  # accepted requests fail, and the workers end
            await asyncio.gather(*(child.stop(CUT_S + GRACE_S) for child in self._running))
        await ends

    def _supervise(self, slot: str) -> "asyncio.Task[None]":
        async def start() -> ChildProcess:
            command = worker.command(self._listener.fileno(), self._queues.paths, slot)
            child = ChildProcess(command, pass_fds=[self._listener.fileno()])
            self._running[child] = slot
            asyncio.get_running_loop().call_later(START_S, self._check_start, child)
            return child

        work = supervise(start, self._on_end, name="worker", first_delay_s=FIRST_DELAY_S, max_delay_s=MAX_DELAY_S)
        return run_in_background(work, "worker supervisor")

    def _on_end(self, child: ChildProcess) -> None:
        code, slot = child.ended.result(), self._running.pop(child)
        forget_process(self._queues.runtime, slot)
        log.error("worker ended", pid=child.pid, code=code)
        self._has_served = self._has_served or bool(self._queues.connected)
        self._queues.connected.discard(child.pid)
        if self._queues.connected or code != CANNOT_START:
            self._failing_since = math.inf
            return
        self._failing_since = min(self._failing_since, time.monotonic())
        if not self._has_served:
            self._signals.stop(CANNOT_START)  # no worker has ever started: the service cannot
        elif time.monotonic() - self._failing_since > GIVE_UP_S:
            log.critical("no worker starts any more; shutting down")
            self._signals.stop(FAILED)

    def _check_start(self, child: ChildProcess) -> None:
        if child in self._running and child.pid not in self._queues.connected:
            self._kill(child.pid, f"not ready within {START_S:.0f} s")

    async def _kill_hung(self) -> None:
        while True:
            self._kill(await self._queues.hung.get(), f"no reply for {MAX_MISSED_PINGS} s")

    def _kill(self, pid: int, reason: str) -> None:
        for child in self._running:
            if child.pid == pid:
                log.error("worker hung", pid=pid, reason=reason)
                child.kill()
