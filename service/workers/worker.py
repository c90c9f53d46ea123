"""A worker process: `python -m service.workers.worker`, started by the service when TINYRM_WORKERS is above 1.

It speaks HTTP, checks and encodes; its parent owns the queues and the engines.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
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
from tinyrm.command_line import parse
from tinyrm.errors import TinyRMError

log = structlog.get_logger("tinyrm")


@dataclass(frozen=True)
class Options:
    __doc__ = __doc__

    listener: int
    """Descriptor of the listening socket."""
    queues: dict[Path, Path]
    """Bundle folders, each followed by the Unix socket of its queue."""


def command(listener: int, queues: Mapping[Path, Path]) -> list[str]:
    """Return the command of a worker. queues: bundle folder -> Unix socket of its queue."""
    pairs = [str(part) for pair in queues.items() for part in pair]
    return [sys.executable, "-m", "service.workers.worker", f"--listener={listener}", "--queues", *pairs]


def main() -> int:
    options = parse(Options, prog="python -m service.workers.worker")
    settings = Settings()
    configure(settings.log_level, settings.log_format)
    with (
        socket.socket(fileno=options.listener) as listener,
        asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner,
    ):
        return runner.run(Worker(settings, options.queues).serve(listener))


class Worker:
    """The models of the service, with backends in another process. It leaves when that one does."""

    def __init__(self, settings: Settings, queues: Mapping[Path, Path]) -> None:
        self._settings, self._queues = settings, queues
        self._registry = ModelRegistry(settings, create_metrics(settings), self._connect)

    async def serve(self, listener: socket.socket) -> int:
        """Serve until a signal to stop, or until the owner of a queue has left; 3 if it cannot start."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # only the parent handles it
        parent = os.getppid()

        def ask_parent_to_reload() -> None:
            if os.getppid() == parent:  # else it has left, and this worker is about to
                os.kill(parent, signal.SIGHUP)

        try:
            await self._registry.start()
        except (TinyRMError, OSError) as error:
            log.error("worker cannot start", reason=str(error))
            return 3
        state = create_state(self._settings, self._registry, ask_parent_to_reload)
        server = make_server(create_app(state), self._settings, state.drain)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        await server.serve([listener])
        return 0 if server.started else 3

    async def _connect(self, bundle: Bundle, path: Path | None = None) -> QueueClient:
        """Connect to the bundle's queue; path: where it is now, if it has moved."""
        backend = QueueClient(
            self._settings,
            on_loss=lambda: os.kill(os.getpid(), signal.SIGTERM),
            on_move=partial(self._follow, bundle.folder),
        )
        await backend.connect(path or self._queues[bundle.folder], bundle.manifest.identity)
        return backend

    async def _follow(self, folder: Path, path: Path) -> None:
        """Serve the bundle that `folder` holds now, from its own queue."""
        try:
            bundle = await asyncio.to_thread(open_bundle, self._settings, folder)
            backend = await self._connect(bundle, path)
        except (TinyRMError, OSError) as error:
            log.error("cannot follow", folder=str(folder), reason=str(error))
            os.kill(os.getpid(), signal.SIGTERM)  # another worker begins with what is there
            return
        self._registry.replace(folder, bundle, backend)


if __name__ == "__main__":
    sys.exit(main())
