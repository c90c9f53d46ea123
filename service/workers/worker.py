"""A worker process: `python -m service.workers.worker`, started by the service if TINYRM_WORKERS is above 1.

It serves HTTP, validates and encodes; its parent owns the queues and the engines.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import structlog
import uvicorn

from service.app import create_app, create_metrics, create_state
from service.http.server import make_server
from service.logs import configure, describe_failure
from service.metrics import Metrics
from service.process import CANNOT_START, StopSignals, block_signals, unblock_signals
from service.scoring.models import ModelRegistry
from service.settings import Settings
from service.shared_metrics import share_metrics
from service.workers.queue_client import QueueClient

log = structlog.get_logger("tinyrm")


def command(listener: int, queues: Mapping[Path, Path], slot: str) -> list[str]:
    """Return the command that starts a worker; `main` parses its arguments.

    listener: descriptor of the listening socket.
    queues: bundle folder -> Unix socket of its queue.
    slot: name of the worker, and of the one that replaces it.
    """
    paths = {str(folder): str(path) for folder, path in queues.items()}
    return [sys.executable, "-m", "service.workers.worker", str(listener), json.dumps(paths), slot]


def main() -> int:
    descriptor, paths, slot = sys.argv[1:]
    queues = {Path(folder): Path(path) for folder, path in json.loads(paths).items()}
    settings = Settings()
    configure(settings.log_level, settings.log_format)
    with (
        socket.socket(fileno=int(descriptor)) as listener,
        asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner,
    ):
        exit_code = runner.run(serve(settings, queues, listener, slot))
        block_signals()
        return exit_code


async def serve(settings: Settings, queues: Mapping[Path, Path], listener: socket.socket, slot: str) -> int:
    """Serve until a signal to stop, or until a queue is lost. Return the exit code of `service.start.serve`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # only the parent handles it
    signals = StopSignals()
    unblock_signals()
    parent = os.getppid()

    def request_reload() -> None:
        if os.getppid() == parent:  # otherwise the parent has ended, and this worker is about to
            os.kill(parent, signal.SIGHUP)

    try:
        share_metrics(next(iter(queues.values())).parent, slot)
        models = Models(settings, create_metrics(settings), on_loss=signals.stop)
        if not await signals.run_unless_stopped(models.connect(queues)):
            return signals.exit_code
        state = create_state(settings, models.registry, request_reload)
        server = make_server(create_app(state), settings, state.drain, state.cut)
    except Exception as error:  # noqa: BLE001  # whatever it is, one line names it
        log.error("worker cannot start", **describe_failure(error))
        return CANNOT_START
    # The parent ends the queues if accepted work is no longer wanted: every further signal may have the same cause.
    signals.call(on_stop=server.stop)
    await server.serve([listener])
    return signals.exit_code if server.started else CANNOT_START


class Models:
    """The models with queues in the parent process.

    on_loss: called when a queue that is served is lost, because the parent has ended.
    """

    def __init__(self, settings: Settings, metrics: Metrics, on_loss: Callable[[], None]) -> None:
        self.registry = ModelRegistry(settings, metrics)
        self._settings, self._on_loss = settings, on_loss
        self._is_connected = asyncio.Event()

    async def connect(self, queues: Mapping[Path, Path]) -> None:
        """Connect to the queues, and serve their bundles. Raises OSError, TinyRMError."""
        clients = {folder: await self._connect(folder, path) for folder, path in queues.items()}
        self.registry.serve({folder: (client.bundle, client) for folder, client in clients.items()})
        self._is_connected.set()

    async def _connect(self, folder: Path, path: Path) -> QueueClient:
        client = QueueClient(self._settings, self._on_loss, partial(self._follow, folder))
        await client.connect(path, folder)
        return client

    async def _follow(self, folder: Path, path: Path) -> None:
        """Serve `folder` with the queue at `path`, and the bundle of that queue."""
        await self._is_connected.wait()
        client = await self._connect(folder, path)
        self.registry.replace(folder, client.bundle, client)


if __name__ == "__main__":
    sys.exit(main())
