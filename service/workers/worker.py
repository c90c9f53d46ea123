"""A worker process: `python -m service.workers.worker`, started by the service if TINYRM_WORKERS is above 1.

It serves HTTP, validates and encodes; its parent owns the queues and the engines.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import structlog
import uvicorn

from service.app import create_app, create_metrics, create_state
from service.http.server import make_server
from service.logs import configure
from service.scoring.models import ModelRegistry, open_bundle
from service.settings import Settings
from service.workers.queue_client import QueueClient
from tinyrm.bundle import Bundle
from tinyrm.errors import TinyRMError

log = structlog.get_logger("tinyrm")


def command(listener: int, queues: Mapping[Path, Path]) -> list[str]:
    """Return the command that starts a worker; `main` parses its arguments.

    listener: descriptor of the listening socket.
    queues: bundle folder -> Unix socket of its queue.
    """
    paths = {str(folder): str(path) for folder, path in queues.items()}
    return [sys.executable, "-m", "service.workers.worker", str(listener), json.dumps(paths)]


def main() -> int:
    descriptor, paths = sys.argv[1:]
    queues = {Path(folder): Path(path) for folder, path in json.loads(paths).items()}
    settings = Settings()
    configure(settings.log_level, settings.log_format)
    with (
        socket.socket(fileno=int(descriptor)) as listener,
        asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner,
    ):
        return runner.run(Worker(settings, queues).serve(listener))


class Worker:
    """Serves the models with queues in the parent process, and ends when the parent ends.

    queues: bundle folder -> Unix socket of its queue.
    """

    def __init__(self, settings: Settings, queues: Mapping[Path, Path]) -> None:
        self._settings, self._queues = settings, queues
        self._registry = ModelRegistry(settings, create_metrics(settings), self._connect)

    async def serve(self, listener: socket.socket) -> int:
        """Serve until a signal to stop, or until a queue is lost. Return 0, or 3 if the worker cannot start."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # only the parent handles it
        parent = os.getppid()

        def request_reload() -> None:
            if os.getppid() == parent:  # otherwise the parent has ended, and this worker is about to
                os.kill(parent, signal.SIGHUP)

        try:
            await self._registry.start()
        except (TinyRMError, OSError) as error:
            log.error("worker cannot start", reason=str(error))
            return 3
        state = create_state(self._settings, self._registry, request_reload)
        server = make_server(create_app(state), self._settings, state.drain)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        await server.serve([listener])
        return 0 if server.started else 3

    async def _connect(self, bundle: Bundle, path: Path | None = None) -> QueueClient:
        """Connect to the bundle's queue.

        path: Unix socket of the queue if it has moved.
        """
        backend = QueueClient(
            self._settings,
            on_loss=lambda: os.kill(os.getpid(), signal.SIGTERM),
            on_move=partial(self._follow, bundle.folder),
        )
        await backend.connect(path or self._queues[bundle.folder], bundle.manifest.identity)
        return backend

    async def _follow(self, folder: Path, path: Path) -> None:
        """Serve the bundle that `folder` holds now, with the queue at `path`."""
        try:
            bundle = await asyncio.to_thread(open_bundle, self._settings, folder)
            backend = await self._connect(bundle, path)
        except (TinyRMError, OSError) as error:
            log.error("cannot move to the new queue", folder=str(folder), reason=str(error))
            os.kill(os.getpid(), signal.SIGTERM)  # a new worker will open the current bundle
            return
        self._registry.replace(folder, bundle, backend)


if __name__ == "__main__":
    sys.exit(main())
