"""A front process: `python -m service.front`, started by the service when TINYRM_WORKERS is above 1.

It speaks HTTP, checks and encodes; the queue and the engine are its parent's.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import structlog
import uvicorn

from service.logs import configure
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.remote import RemoteBackend
from service.server import server_of
from service.settings import Settings
from tinyrm.bundle import Bundle

log = structlog.get_logger("tinyrm")


def command(listener: int, hub: Path) -> list[str]:
    return [sys.executable, "-m", "service.front", f"--listener={listener}", f"--hub={hub}"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service.front", description=__doc__)
    parser.add_argument("--listener", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--hub", type=Path, required=True, help="Unix socket of the queue's owner")
    options = parser.parse_args()
    settings = Settings()
    configure(settings.log_level, settings.log_format)
    with (
        socket.socket(fileno=options.listener) as listener,
        asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner,
    ):
        return runner.run(serve(settings, listener, options.hub))


async def serve(settings: Settings, listener: socket.socket, hub: Path) -> int:
    """Until asked to stop, or until the queue's owner has gone."""
    bundle = Bundle.open(settings.model)
    backend = RemoteBackend(settings, on_loss=lambda: os.kill(os.getpid(), signal.SIGTERM))
    await backend.connect(hub)
    metrics = Metrics(bundle.manifest, backend.greeting)
    pipeline = Pipeline(bundle.manifest, bundle.encoder(), backend, metrics, default_swap=settings.default_swap)
    server = server_of(settings, pipeline)
    await server.serve([listener])
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main())
