"""The application object: settings in, ASGI out. Nothing is loaded before its lifespan begins."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI

from service import errors
from service.engine import EngineOptions
from service.engine_process import EngineProcess
from service.metrics import Metrics
from service.middleware import GiveUpWithClient, JsonBodies, ObserveRequests
from service.pipeline import Limits, Pipeline, RunningEngine
from service.routes import pipeline_of, router
from service.settings import Settings
from tinyrm import __version__
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoding

log = structlog.get_logger("tinyrm")

# Rows of a CPU engine share nothing, so a larger batch only makes its first rows wait for its last.
BATCH_TOKENS_ON_CPU, BATCH_TOKENS_ON_GPU = 1024, 16384

# Settings that are the engine's own.
ENGINE_SETTINGS = ("engine", "precision", "threads", "streams", "peak_gflops_per_s", "log_level", "log_format")

OpenEngine = Callable[[Settings, Encoding], Awaitable[RunningEngine]]


def create_app(settings: Settings, build: Callable[[Settings], Awaitable[Pipeline]] | None = None) -> FastAPI:
    """The service over what `build` makes of the settings; by default, the bundle that they name."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        pipeline = await (build or build_pipeline)(settings)
        pipeline.batcher.start()
        log.info(
            "ready",
            model=pipeline.manifest.identity,
            engine=pipeline.engine.greeting.name,
            precision=pipeline.engine.greeting.precision,
        )
        yield {"pipeline": pipeline, "max_batch_items": settings.max_batch_items}
        await pipeline.batcher.drain(settings.drain_timeout_s)
        await pipeline.close()
        log.info("stopped")

    app = FastAPI(
        title="TinyRM",
        version=__version__,
        summary="Which of two responses is better, in milliseconds.",
        lifespan=lifespan,
        redirect_slashes=False,
        license_info={"name": "Apache-2.0"},
    )
    app.include_router(router)
    errors.install(app, lambda request: pipeline_of(request).batcher.retry_after_s(), int(settings.overload_status))
    app.add_middleware(GiveUpWithClient)
    app.add_middleware(JsonBodies, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(ObserveRequests)
    return app


async def build_pipeline(settings: Settings, open_engine: OpenEngine | None = None) -> Pipeline:
    """Open the bundle, start the engine, run it once. Raises InvalidBundle, EngineUnavailable, InvalidSettings."""
    bundle = Bundle.open(settings.model)
    manifest, encoder = bundle.manifest, bundle.encoder()
    settings.check_against(manifest.spec.max_tokens)
    (probe,) = encoder.encode(Comparison("2 + 2?", "4", "5"), manifest.spec.instruction(None))
    engine = await (open_engine or start_engine)(settings, probe)
    greeting = engine.greeting
    suits = BATCH_TOKENS_ON_CPU if greeting.step else BATCH_TOKENS_ON_GPU
    return Pipeline(
        manifest,
        encoder,
        engine,
        Metrics(manifest, greeting.name, greeting.precision, greeting.peak_gflops_per_s),
        Limits(settings.max_batch_tokens or suits, settings.max_queue_tokens, settings.max_wait_s, settings.streams),
        default_swap=settings.default_swap,
    )


async def start_engine(settings: Settings, probe: Encoding) -> RunningEngine:
    """In a process of its own. Raises EngineUnavailable."""
    shared = {name: getattr(settings, name) for name in ENGINE_SETTINGS}
    engine = EngineProcess(EngineOptions(str(settings.model), **shared), probe, settings.engine_timeout_s)
    await engine.start()
    return engine
