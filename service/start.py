"""Start the service, serve until a signal, and return the exit code."""

import asyncio
import signal
import sys
from collections.abc import Mapping

import structlog
import uvicorn

from service.app import check_settings, create_app, create_state
from service.http.server import bind, listen, make_server
from service.logs import configure, describe_failure
from service.process import CANNOT_START, StopSignals, block_signals
from service.settings import Settings, read_settings
from service.workers.supervisor import serve_with_workers
from tinyrm.errors import TinyRMError

log = structlog.get_logger("tinyrm")


def run(environment: Mapping[str, str]) -> int:
    """Serve as the environment's settings state. Return 2 if they are not valid, else the exit code of `serve`."""
    try:
        settings = read_settings(environment)
    except TinyRMError as error:
        sys.stderr.write(f"tinyrm: {error}\n")
        return 2
    configure(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
        exit_code = runner.run(serve(settings))
        block_signals()
        return exit_code


async def serve(settings: Settings) -> int:
    """Serve until a signal stops the service.

    Return 0 after a clean shutdown, 1 if a part of the service failed, 3 if the service could not start.
    """
    signals, reload_requested = StopSignals(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload_requested.set)  # a bundle may be open already
    try:
        if settings.workers > 1:
            check_settings(settings)
            return await serve_with_workers(settings, signals, reload_requested)
        listeners = bind(settings)
        state = create_state(settings)
        server = make_server(create_app(state), settings, state.drain, state.cut)
        if not await signals.run_unless_stopped(state.registry.start()):
            log.info("stopped during the start")
            return signals.exit_code
        for listener in listeners:
            listen(listener, settings)
    except Exception as error:  # noqa: BLE001  # whatever it is, one line names it
        log.error("cannot start", **describe_failure(error))
        return CANNOT_START
    loop.add_signal_handler(signal.SIGHUP, state.request_reload)
    if reload_requested.is_set():
        state.request_reload()
    signals.call(on_stop=server.stop, on_cut=server.cut)
    await server.serve(listeners)
    return signals.exit_code if server.started else CANNOT_START
