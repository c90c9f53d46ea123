"""The application object: settings in, ASGI out. Nothing is loaded before its lifespan begins."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Lifespan, Scope

from service import errors
from service.api import admin, docs, page
from service.api.dependencies import AppState
from service.api.routes import deployment_of, router
from service.dialects.context import Sample, judge_cohort
from service.dialects.table import spoken
from service.engine.backend import Backend, OpenEngine, start_backend, start_engine
from service.http import auth
from service.http.auth import OPEN_PATHS
from service.http.server import Server, make_server
from service.http.stack import build_stack
from service.http.tracing import Tracing
from service.metrics import ENDPOINT_BY_PATH, Metrics
from service.process_metrics import Watch
from service.scoring.groups import CohortLimits, Cohorts
from service.scoring.models import Deployment, Reload, folders_of, parse_specialists
from service.scoring.pipeline import Pipeline
from service.settings import Settings
from tinyrm import __version__
from tinyrm.bundle import Bundle
from tinyrm.errors import InvalidSettings

log = structlog.get_logger("tinyrm")


def create_app(settings: Settings, build: Callable[[Settings], Awaitable[Deployment]] | None = None) -> ASGIApp:
    """The service over what `build` makes of the settings; by default, the bundle that they name.

    Raises InvalidKeys, InvalidSettings.
    """
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        deployment = await (build or build_deployment)(settings)
        for pipeline in deployment.pipelines.values():
            engine = pipeline.backend.greeting.info
            log.info("ready", model=pipeline.manifest.identity, engine=engine.name, precision=engine.precision)
        cohorts = cohorts_of(settings, deployment)
        deployment.before_drain.append(cohorts.drain)
        role = "front" if settings.workers > 1 else "service"
        watching = asyncio.create_task(Watch(deployment.metrics, role, deployment.engine_pids).run())
        yield {"app": AppState(settings, deployment, cohorts)}
        await deployment.drain(settings.drain_timeout_s)
        watching.cancel()
        if tracing:
            await tracing.close()
        log.info("stopped")

    app = create_api(settings, lifespan)
    return build_stack(
        app,
        settings,
        paths=frozenset(app.openapi()["paths"]) | OPEN_PATHS,
        observe=_observer(settings),
        overload_status=overload_status_of(settings),
        is_logged=settings.access_log == "on",
        tracing=tracing,
    )


def create_api(settings: Settings, lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """What is asked and answered, without what is around it."""
    app = FastAPI(
        title="TinyRM",
        version=__version__,
        summary="Which of two responses is better, in milliseconds.",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # service/api/docs.py
        docs_url=None,
        redoc_url=None,
        license_info={"name": "Apache-2.0"},
    )
    app.include_router(router)
    app.include_router(docs.router)
    for dialect in spoken(settings):
        app.include_router(dialect.router)
    app.include_router(page.router)
    if settings.api_keys_file:
        app.include_router(admin.router)
    errors.install(app, lambda request: deployment_of(request).retry_after_s(), overload_status_of(settings))
    auth.declare_security(app.openapi(), required=settings.api_keys_file is not None)
    return app


def _observer(settings: Settings) -> Callable[[Scope, int, float], None]:
    endpoint_of_path = ENDPOINT_BY_PATH | {path: d.name for d in spoken(settings) for path in d.paths}

    def observe(scope: Scope, status: int, seconds: float) -> None:
        endpoint = endpoint_of_path.get(scope["path"], "other")
        scope["state"]["app"].deployment.metrics.observe_request(endpoint, status, seconds)

    return observe


def overload_status_of(settings: Settings) -> errors.OverloadStatus:
    only_503 = {path for dialect in spoken(settings) if dialect.retries_5xx_only for path in dialect.paths}
    return lambda path: 503 if path in only_503 else int(settings.overload_status)


def metrics_of(settings: Settings) -> Metrics:
    return Metrics([dialect.name for dialect in spoken(settings)])


def cohorts_of(settings: Settings, deployment: Deployment) -> Cohorts[Sample]:
    limits = CohortLimits(settings.cohort_timeout_s, settings.max_open_cohorts, settings.max_cohort_bytes)
    return Cohorts(partial(judge_cohort, deployment), limits, deployment.metrics)


async def build_deployment(settings: Settings, open_engine: OpenEngine = start_engine) -> Deployment:
    """Open the bundles, start their engines. Raises InvalidBundle, EngineUnavailable, InvalidSettings."""
    metrics = metrics_of(settings)

    async def backend_of(bundle: Bundle) -> Backend:
        return await start_backend(settings, bundle, metrics, open_engine)

    reload = Reload(lambda: deployment.reload(pipeline_builder(settings, metrics)))
    deployment = await deploy(settings, metrics, backend_of, reload.ask)
    return deployment


async def deploy(
    settings: Settings,
    metrics: Metrics,
    backend_of: Callable[[Bundle], Awaitable[Backend]],
    ask_reload: Callable[[], None],
) -> Deployment:
    """The bundles that the settings name, each before its backend."""
    specialists = parse_specialists(settings.specialists)
    bundles = {folder: Bundle.open(folder) for folder in folders_of(settings.model, specialists)}
    for domain, folder in specialists.items():
        if domain not in bundles[folder].manifest.spec.domains:
            raise InvalidSettings(
                f"{bundles[folder].manifest.identity} knows no domain {domain!r}; it cannot answer it"
            )
    for bundle in bundles.values():
        if settings.default_swap == "auto" and bundle.manifest.auto_swap is None:
            raise InvalidSettings(
                f"{bundle.manifest.identity} was exported without a margin for swap auto; use TINYRM_DEFAULT_SWAP=on"
            )
    pipelines = {
        folder: pipeline_of(settings, bundle, await backend_of(bundle), metrics) for folder, bundle in bundles.items()
    }
    deployment = Deployment(pipelines, specialists, metrics, settings.drain_timeout_s, ask_reload)
    deployment.describe()
    return deployment


def pipeline_builder(settings: Settings, metrics: Metrics) -> Callable[[Bundle], Awaitable[Pipeline]]:
    """How a bundle that takes another's place is started: with an engine of its own."""

    async def build(bundle: Bundle) -> Pipeline:
        return pipeline_of(settings, bundle, await start_backend(settings, bundle, metrics), metrics)

    return build


def pipeline_of(settings: Settings, bundle: Bundle, backend: Backend, metrics: Metrics) -> Pipeline:
    return Pipeline(bundle.manifest, bundle.encoder(), backend, metrics, default_swap=settings.default_swap)


def server_of(settings: Settings, deployment: Deployment) -> Server:
    """Return a server that is not started, over models that are."""

    async def built(_: Settings) -> Deployment:
        return deployment

    async def drain() -> None:
        await deployment.drain(settings.drain_timeout_s)

    return make_server(create_app(settings, built), settings, drain)
