"""python -m service: serve the bundle that TINYRM_MODEL names. `--settings` prints every setting."""

import argparse
import os
import sys

import structlog
import uvicorn
from pydantic import ValidationError

from service.app import build_pipeline, create_app
from service.limits import Limits, allow_open_files
from service.logs import configure
from service.server import GRACE_S, Server
from service.settings import PREFIX, Settings, refuse_unknown
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
    try:
        pipeline = build_pipeline(settings)
        app = create_app(settings, lambda _: pipeline)
    except TinyRMError as error:
        log.error("cannot start", type=error.type, reason=str(error))
        return 3

    async def drain() -> None:
        await pipeline.batcher.drain(settings.drain_timeout_s)

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_timeout_s) + GRACE_S,
        **limits_of(settings).options(),
    )
    server = Server(config, drain)
    server.run()
    return 0 if server.started else 3


def limits_of(settings: Settings) -> Limits:
    return Limits(
        max_connections=allow_open_files(settings.max_connections),
        max_header_bytes=settings.max_header_bytes,
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
    )


def settings_table() -> str:
    """The settings as a Markdown table."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | `{field.default}` | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


if __name__ == "__main__":
    sys.exit(main())
