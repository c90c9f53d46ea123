"""The application object: settings in, ASGI out. Nothing is loaded before its lifespan begins."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp

from service import auth, docs, errors
from service.access import Access
from service.auth import OPEN_PATHS, KeyRing, RequireKey
from service.backend import OpenEngine, start_backend, start_engine
from service.headers import Cors, SecurityHeaders
from service.limits import RefuseMarked
from service.middleware import GiveUpWithClient, JsonBodies, ObserveRequests
from service.pipeline import Pipeline
from service.routes import pipeline_of, router
from service.settings import Settings, split_origins
from service.tracing import TraceRequests, Tracing
from tinyrm import __version__
from tinyrm.bundle import Bundle

log = structlog.get_logger("tinyrm")


def create_app(settings: Settings, build: Callable[[Settings], Awaitable[Pipeline]] | None = None) -> ASGIApp:
    """The service over what `build` makes of the settings; by default, the bundle that they name.

    Raises InvalidKeys, InvalidSettings.
    """
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None

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
        if tracing:
            await tracing.close()
        log.info("stopped")

    app = FastAPI(
        title="TinyRM",
        version=__version__,
        summary="Which of two responses is better, in milliseconds.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # service/docs.py
        redoc_url=None,
        license_info={"name": "Apache-2.0"},
    )
    app.include_router(router)
    app.include_router(docs.router)
    errors.install(app, lambda request: pipeline_of(request).backend.retry_after_s(), int(settings.overload_status))
    auth.declare(app.openapi(), required=keys is not None)
    # The last one added sees a request first.
    app.add_middleware(RefuseMarked)
    app.add_middleware(GiveUpWithClient)
    app.add_middleware(JsonBodies, max_body_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    if keys:
        app.add_middleware(RequireKey, keys=keys)
    app.add_middleware(ObserveRequests)
    return _around(app, settings, tracing)


def _around(app: FastAPI, settings: Settings, tracing: Tracing | None) -> ASGIApp:
    """What also holds for the answer to a bug, which Starlette gives outside of an application's middleware."""
    paths = frozenset(app.openapi()["paths"]) | OPEN_PATHS
    outer: ASGIApp = app
    if settings.cors_origins:
        outer = Cors(outer, split_origins(settings.cors_origins))
    if tracing:
        outer = TraceRequests(outer, tracing.tracer, paths)
    return Access(SecurityHeaders(outer), paths, is_logged=settings.access_log == "on")


async def build_pipeline(settings: Settings, open_engine: OpenEngine = start_engine) -> Pipeline:
    """Open the bundle, start the engine, run it once. Raises InvalidBundle, EngineUnavailable, InvalidSettings."""
    bundle = Bundle.open(settings.model)
    backend, metrics = await start_backend(settings, bundle, open_engine)
    return Pipeline(bundle.manifest, bundle.encoder(), backend, metrics, default_swap=settings.default_swap)
