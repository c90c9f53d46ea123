"""python -m service: serve the bundle that TINYRM_MODEL names. `--settings` prints every setting."""

import argparse
import asyncio
import os
import signal
import sys

import structlog
import uvicorn
from pydantic import ValidationError

from service.app import build_deployment, create_app, server_of
from service.logs import configure
from service.settings import PREFIX, Settings, refuse_unknown
from service.workers.supervisor import serve_with_workers
from tinyrm.errors import TinyRMError

log = structlog.get_logger("tinyrm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    parser.add_argument("--settings", action="store_true", help="print the settings with their defaults and leave")
    if parser.parse_args().settings:
        print(settings_table())
        return 0
    try:
        refuse_unknown(os.environ)
        settings = Settings()
    except (TinyRMError, ValidationError) as error:
        print(f"tinyrm: {error}", file=sys.stderr)
        return 2
    configure(settings.log_level, settings.log_format)
    return serve(settings)


def serve(settings: Settings) -> int:
    """Listen until asked to stop; 0 after a clean shutdown, 3 if the service could not start."""
    with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    try:
        if settings.workers > 1:
            create_app(settings)  # what the fronts could not be is told before they are started
            return await serve_with_workers(settings)
        deployment = await build_deployment(settings)
        server = server_of(settings, deployment)
    except TinyRMError as error:
        log.error("cannot start", type=error.type, reason=str(error))
        return 3
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, deployment.ask_reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await server.serve()
    return 0 if server.started else 3


def settings_table() -> str:
    """The settings as a Markdown table."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | `{field.default}` | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


if __name__ == "__main__":
    sys.exit(main())
