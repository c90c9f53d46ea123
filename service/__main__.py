"""`python -m service`: serve the bundle in TINYRM_MODEL. `--settings` prints every setting."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import uvicorn
from pydantic import ValidationError

from service.app import check_settings, create_app, create_state
from service.http.server import make_server
from service.logs import configure
from service.settings import PREFIX, Settings, refuse_unknown
from service.workers.supervisor import serve_with_workers
from tinyrm.errors import TinyRMError

log = structlog.get_logger("tinyrm")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Serve the bundle in TINYRM_MODEL. Every setting is an environment variable."""

    settings: bool = False
    """Print the settings with their defaults, and exit."""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m service") -> int:
    if sys.argv[1:] if arguments is None else arguments:
        # Here, because a start without options needs no command line, and its import takes 0.2 s.
        from tinyrm.command_line import parse

        if parse(ServeOptions, arguments, prog=prog).settings:
            print(settings_table())
            return 0
    try:
        refuse_unknown(os.environ)
        settings = Settings()
    except (TinyRMError, ValidationError) as error:
        print(f"tinyrm: {error}", file=sys.stderr)
        return 2
    configure(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
        return runner.run(serve(settings))


async def serve(settings: Settings) -> int:
    """Serve until a signal stops the service. Return 0 after a clean shutdown, 3 if the service could not start."""
    try:
        if settings.workers > 1:
            check_settings(settings)
            return await serve_with_workers(settings)
        state = create_state(settings)
        app = create_app(state)
        await state.registry.start()
    except TinyRMError as error:
        log.error("cannot start", type=error.type, reason=str(error))
        return 3
    server = make_server(app, settings, state.drain)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, state.request_reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await server.serve()
    return 0 if server.started else 3


def settings_table() -> str:
    """Return the settings as a Markdown table."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | `{field.default}` | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


if __name__ == "__main__":
    sys.exit(main())
