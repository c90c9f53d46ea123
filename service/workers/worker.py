"""A front process: `python -m service.workers.worker`, started by the service when TINYRM_WORKERS is above 1.

It speaks HTTP, checks and encodes; the queues and the engines are its parent's.
"""

import argparse
import asyncio
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
from service.workers.queue_client import RemoteBackend
from tinyrm.errors import TinyRMError

log = structlog.get_logger("tinyrm")


def command(listener: int, hubs: Mapping[Path, Path]) -> list[str]:
    """hubs: bundle folder -> Unix socket of the owner of its queue."""
    pairs = [f"--hub={folder}={path}" for folder, path in hubs.items()]
    return [sys.executable, "-m", "service.workers.worker", f"--listener={listener}", *pairs]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service.workers.worker", description=__doc__)
    parser.add_argument("--listener", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--hub", action="append", required=True, help="bundle folder=Unix socket of its queue's owner")
    options = parser.parse_args()
    # A socket's path is the service's own and holds no equals sign.
    hubs = {Path(folder): Path(path) for folder, path in (pair.rsplit("=", 1) for pair in options.hub)}
    settings = Settings()
    configure(settings.log_level, settings.log_format)
    with (
        socket.socket(fileno=options.listener) as listener,
        asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner,
    ):
        return runner.run(Front(settings, hubs).serve(listener))


class Front:
    """One deployment, of backends that are elsewhere. It leaves when they do."""

    def __init__(self, settings: Settings, hubs: Mapping[Path, Path]) -> None:
        self._settings, self._hubs = settings, hubs
        self._registry = ModelRegistry(
            settings, create_metrics(settings), lambda bundle: self._connect(bundle.folder, self._hubs[bundle.folder])
        )

    async def serve(self, listener: socket.socket) -> int:
        """Until asked to stop, or until an owner of a queue has gone."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent's business, whoever it is sent to
        parent = os.getppid()

        def ask_parent() -> None:
            if os.getppid() == parent:  # else it has gone, and this front is about to
                os.kill(parent, signal.SIGHUP)

        await self._registry.start()
        state = create_state(self._settings, self._registry, ask_parent)
        server = make_server(create_app(state), self._settings, state.drain)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        await server.serve([listener])
        return 0 if server.started else 3

    async def _connect(self, folder: Path, hub: Path) -> RemoteBackend:
        backend = RemoteBackend(
            self._settings,
            on_loss=lambda: os.kill(os.getpid(), signal.SIGTERM),
            on_move=partial(self._follow, folder),
        )
        await backend.connect(hub)
        return backend

    async def _follow(self, folder: Path, hub: Path) -> None:
        """The bundle in `folder` is another one now, and has a queue of its own."""
        try:
            bundle = await asyncio.to_thread(open_bundle, self._settings, folder)
            backend = await self._connect(folder, hub)
        except (TinyRMError, OSError) as error:
            log.error("cannot follow", folder=str(folder), reason=str(error))
            os.kill(os.getpid(), signal.SIGTERM)  # a new front begins with what is there
            return
        self._registry.replace(folder, bundle, backend)


if __name__ == "__main__":
    sys.exit(main())
