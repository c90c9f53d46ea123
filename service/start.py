"""Start the service, serve until a signal, and return the exit code."""

import asyncio
import signal
import sys
from collections.abc import Mapping

import structlog
import uvicorn

from service.engine.backend import ServedEngine, start_engine
from service.logs import configure, describe_failure
from service.phases import Phases
from service.process import CANNOT_START, StopSignals, block_signals
from service.scoring.models import bundle_folders, open_bundles
from service.settings import Settings, read_settings
from tinyrm.bundle import Bundle
from tinyrm.errors import TinyRMError

log = structlog.get_logger("tinyrm")


def run(environment: Mapping[str, str]) -> int:
    """Serve as the environment's settings state. Return 2 if they are not valid, else the exit code of `serve`."""
    phases = Phases()
    phases.end("imports")
    try:
        settings = read_settings(environment)
    except TinyRMError as error:
        sys.stderr.write(f"tinyrm: {error}\n")
        return 2
    configure(settings.log_level, settings.log_format)
    try:
        # Here, where a signal still ends the process at once: bundles that are not in the cache take minutes.
        bundle_folders(settings)
    except Exception as error:  # noqa: BLE001  # whatever it is, one line names it
        log.error("cannot start", **describe_failure(error))
        return CANNOT_START
    with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
        exit_code = runner.run(serve(settings, phases))
        block_signals()
        return exit_code


async def serve(settings: Settings, phases: Phases | None = None) -> int:
    """Serve until a signal stops the service.

    phases: those of the start so far, for the log.

    Return 0 after a clean shutdown, 1 if a part of the service failed, 3 if the service could not start.
    """
    phases = phases or Phases()
    signals, reload_requested = StopSignals(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload_requested.set)  # a bundle may be open already
    early = EarlyEngine()
    try:
        if settings.workers > 1:
            from service.app import check_settings
            from service.workers.supervisor import serve_with_workers

            check_settings(settings)
            return await serve_with_workers(settings, signals, reload_requested)
        bundles = open_bundles(settings)
        phases.end("bundles")
        await early.begin(settings, next(iter(bundles.values())))
        # Here, because these imports take as long as the engine's process takes for its own.
        from service.app import create_app, create_registry, create_state
        from service.http.server import bind, listen, make_server

        phases.end("application")
        listeners = bind(settings)
        state = create_state(settings, create_registry(settings, early.open_engine))
        server = make_server(create_app(state, phases=phases), settings, state.drain, state.cut)
        if not await signals.run_unless_stopped(state.registry.start(bundles)):
            log.info("stopped during the start")
            return signals.exit_code
        phases.end("engine")
        for listener in listeners:
            listen(listener, settings)
    except Exception as error:  # noqa: BLE001  # whatever it is, one line names it
        log.error("cannot start", **describe_failure(error))
        return CANNOT_START
    finally:
        await early.cancel()
    loop.add_signal_handler(signal.SIGHUP, state.request_reload)
    if reload_requested.is_set():
        state.request_reload()
    signals.call(on_stop=server.stop, on_cut=server.cut)
    await server.serve(listeners)
    return signals.exit_code if server.started else CANNOT_START


class EarlyEngine:
    """The engine of one bundle, which starts in its process while this process imports the rest of the service."""

    def __init__(self) -> None:
        self._bundle: Bundle | None = None
        self._starting: asyncio.Task[ServedEngine] | None = None

    async def begin(self, settings: Settings, bundle: Bundle) -> None:
        """Start the process, and return while it starts."""
        self._bundle = bundle
        self._starting = asyncio.ensure_future(start_engine(settings, bundle))
        await asyncio.sleep(0)

    async def open_engine(self, settings: Settings, bundle: Bundle) -> ServedEngine:
        """Return the engine of this bundle once it is ready, or start another one. Raises EngineUnavailable."""
        if self._starting is None or bundle is not self._bundle:
            return await start_engine(settings, bundle)
        starting, self._starting = self._starting, None
        return await starting

    async def cancel(self) -> None:
        """Stop an engine that nobody has taken."""
        if self._starting:
            self._starting.cancel()
            (started,) = await asyncio.gather(self._starting, return_exceptions=True)
            if not isinstance(started, BaseException):
                await started.stop()
