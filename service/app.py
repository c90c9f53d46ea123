"""The application object: settings in, ASGI out. Nothing is loaded before its lifespan begins."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp

from service import auth, docs, errors
from service.access import Access
from service.auth import OPEN_PATHS, KeyRing, RequireKey
from service.headers import Cors, SecurityHeaders
from service.limits import RefuseMarked
from service.metrics import Metrics
from service.middleware import JsonBodies, ObserveRequests
from service.pipeline import Pipeline
from service.routes import pipeline_of, router
from service.settings import Settings, split_origins
from service.tracing import TraceRequests, Tracing
from tinyrm import __version__
from tinyrm.bundle import Bundle
from tinyrm.peak import matrix_product_gflops_per_s
from tinyrm.runtimes import open_engine, warm_up
from tinyrm.runtimes.guard import GuardedEngine

log = structlog.get_logger("tinyrm")


def create_app(settings: Settings, build: Callable[[Settings], Pipeline] | None = None) -> ASGIApp:
    """The service over what `build` makes of the settings; by default, the bundle that they name.

    Raises InvalidKeys, InvalidSettings.
    """
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        pipeline = (build or build_pipeline)(settings)
        pipeline.batcher.start()
        log.info(
            "ready", model=pipeline.manifest.identity, engine=pipeline.engine.name, precision=pipeline.engine.precision
        )
        yield {"pipeline": pipeline, "max_batch_items": settings.max_batch_items}
        await pipeline.batcher.drain(settings.drain_timeout_s)
        pipeline.close()
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
    errors.install(app, lambda request: pipeline_of(request).batcher.retry_after_s())
    auth.declare(app.openapi(), required=keys is not None)
    # The last one added sees a request first.
    app.add_middleware(RefuseMarked)
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


def build_pipeline(settings: Settings) -> Pipeline:
    """Open the bundle, start the engine, run it once. Raises InvalidBundle, EngineUnavailable, InvalidSettings."""
    bundle = Bundle.open(settings.model)
    manifest = bundle.manifest
    settings.check_against(manifest.spec.max_tokens)
    engine = open_engine(
        bundle,
        settings.engine,
        precision=settings.precision,
        threads=settings.threads,
        streams=settings.streams,
    )
    engine = GuardedEngine(engine, settings.engine_timeout_s)
    warm_up(engine, manifest.spec.max_tokens, manifest.special_tokens.pad)
    return Pipeline(
        manifest,
        bundle.encoder(),
        engine,
        Metrics(manifest, engine.name, engine.precision, settings.peak_gflops_per_s or matrix_product_gflops_per_s()),
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_tokens=settings.max_queue_tokens,
        default_swap=settings.default_swap,
    )
