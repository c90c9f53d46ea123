"""The application object: settings in, ASGI out. Nothing is loaded before its lifespan begins."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI

from service import errors
from service.backend import OpenEngine, start_backend, start_engine
from service.middleware import GiveUpWithClient, JsonBodies, ObserveRequests
from service.pipeline import Pipeline
from service.routes import pipeline_of, router
from service.settings import Settings
from tinyrm import __version__
from tinyrm.bundle import Bundle

log = structlog.get_logger("tinyrm")


def create_app(settings: Settings, build: Callable[[Settings], Awaitable[Pipeline]] | None = None) -> FastAPI:
    """The service over what `build` makes of the settings; by default, the bundle that they name."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        pipeline = await (build or build_pipeline)(settings)
        log.info(
            "ready",
            model=pipeline.manifest.identity,
            engine=pipeline.backend.greeting.name,
            precision=pipeline.backend.greeting.precision,
        )
        yield {"pipeline": pipeline, "max_batch_items": settings.max_batch_items}
        await pipeline.drain(settings.drain_timeout_s)
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
    errors.install(app, lambda request: pipeline_of(request).backend.retry_after_s(), int(settings.overload_status))
    app.add_middleware(GiveUpWithClient)
    app.add_middleware(JsonBodies, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(ObserveRequests)
    return app


async def build_pipeline(settings: Settings, open_engine: OpenEngine = start_engine) -> Pipeline:
    """Open the bundle, start the engine, run it once. Raises InvalidBundle, EngineUnavailable, InvalidSettings."""
    bundle = Bundle.open(settings.model)
    backend, metrics = await start_backend(settings, bundle, open_engine)
    return Pipeline(bundle.manifest, bundle.encoder(), backend, metrics, default_swap=settings.default_swap)
