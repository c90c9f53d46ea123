"""The composition root: make the ASGI application from the settings. Nothing is loaded before its lifespan begins."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Scope

from service import errors
from service.api import compare, document, models, pages, rank, reference, score, tokens
from service.api.dependencies import AppState, get_state
from service.api.direct import DirectRoutes
from service.dialects.table import enabled_dialects, explain_missing, refuse_scattered_cohorts
from service.engine.backend import OpenEngine, start_backend, start_engine
from service.engine.supervisor import run_in_background
from service.http.auth import declare_security
from service.http.connections import allow_open_files
from service.http.stack import build_stack
from service.http.tracing import Tracing, require_opentelemetry
from service.keys import ApiKeys
from service.metrics import ENDPOINT_BY_PATH, Metrics
from service.phases import Phases
from service.process_metrics import ProcessMetrics
from service.scoring.groups import CohortLimits, Cohorts, score_cohort
from service.scoring.models import ModelRegistry, Reload
from service.settings import Settings
from tinyrm import __version__

log = structlog.get_logger("tinyrm")


def check_settings(settings: Settings) -> None:
    """Check what `create_app` needs before workers start and call it.

    Raises InvalidKeys, InvalidSettings, InvalidBundle.
    """
    refuse_scattered_cohorts(settings)
    allow_open_files(settings.max_connections)
    if settings.api_keys_file:
        ApiKeys.read(settings.api_keys_file)
    if settings.otlp_endpoint:
        require_opentelemetry()


def create_metrics(settings: Settings) -> Metrics:
    return Metrics([dialect.name for dialect in enabled_dialects(settings)])


def create_registry(settings: Settings, open_engine: OpenEngine = start_engine) -> ModelRegistry:
    """Return the registry of the configured models, which are not started yet. Raises InvalidSettings."""
    metrics = create_metrics(settings)
    return ModelRegistry(settings, metrics, partial(start_backend, settings, metrics=metrics, open_engine=open_engine))


def create_state(
    settings: Settings,
    registry: ModelRegistry | None = None,
    request_reload: Callable[[], None] | None = None,
    *,
    gets_all_requests: bool = True,
) -> AppState:
    """Return the state of an application. Raises InvalidSettings.

    registry: default: the configured models, with engines that this process starts.
    request_reload: default: reload the models in this process.
    gets_all_requests: False for one of several replicas.
    """
    registry = registry or create_registry(settings)
    request_reload = request_reload or Reload(registry.reload).request
    if settings.workers > 1 or not gets_all_requests:
        return AppState(settings, registry, None, request_reload)
    limits = CohortLimits(
        settings.cohort_timeout_s,
        settings.max_open_cohorts,
        settings.max_cohort_bytes,
        settings.max_cohort_wait_s,
    )
    cohorts = Cohorts(partial(score_cohort, registry), limits, registry.metrics)
    return AppState(settings, registry, cohorts, request_reload)


def create_app(state: AppState, *, has_connections: bool = True, phases: Phases | None = None) -> ASGIApp:
    """Return the application. Its lifespan starts the models unless they are running, and drains them at the end.

    has_connections: as in `build_stack`.
    phases: of the start, which the log shows when the models are ready.

    Raises InvalidKeys, InvalidSettings.
    """
    settings = state.settings
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await state.registry.start()
        for pipeline in state.registry.pipelines.values():
            engine = pipeline.backend.profile.info
            times = phases.for_log() if phases else {}
            log.info("ready", model=pipeline.manifest.identity, engine=engine.name, precision=engine.precision, **times)
        role = "front" if settings.workers > 1 else "service"
        process_metrics = ProcessMetrics(
            state.registry.metrics, role, state.registry.engine_pids, state.registry.encode_wait_s
        )
        reporting = run_in_background(process_metrics.run(), "process metrics")
        yield {"app": state}
        await state.drain()
        reporting.cancel()
        if tracing:
            await tracing.close()
        log.info("stopped")

    # The first dialect of a path counts it; those of the service's own API keep their names.
    endpoints = {
        path: dialect.name for dialect in reversed(enabled_dialects(settings)) for path in dialect.paths
    } | ENDPOINT_BY_PATH

    def observe(scope: Scope, status: int, seconds: float) -> None:
        state.registry.metrics.observe_request(endpoints.get(scope["path"], "other"), status, seconds)

    return build_stack(
        DirectRoutes(create_api(settings, lifespan), enabled_routers(settings)),
        settings,
        paths=paths_of(settings),
        observe=observe,
        overload_status=overload_status(settings),
        is_logged=settings.access_log == "on",
        tracing=tracing,
        has_connections=has_connections,
    )


def create_api(settings: Settings, lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """Return the routes without the middleware."""
    app = FastAPI(
        title="TinyRM",
        version=__version__,
        summary="Which of two responses is better, in milliseconds.",
        description=document.INTRODUCTION,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # service/api/reference.py
        docs_url=None,
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        generate_unique_id_function=document.operation_id,
    )
    for router in enabled_routers(settings):
        app.include_router(router)
    errors.install(
        app, lambda request: get_state(request).registry.retry_after_s(), overload_status(settings), explain_missing
    )
    describe = app.openapi

    # When it is first asked for: it takes a third of a second, which a start has no use for.
    @cache
    def described() -> dict[str, Any]:
        api = describe()
        declare_security(api, required=settings.api_keys_file is not None)
        document.complete(api)
        return api

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI's documentation has it
    return app


def enabled_routers(settings: Settings) -> list[APIRouter]:
    """Return the routers in the order in which their operations are described."""
    dialects = enabled_dialects(settings)
    replaced = [dialect.replaces for dialect in dialects]
    own = (compare.router, rank.router, score.router, tokens.router, models.router)
    routers = [one for one in own if one not in replaced]
    for router in (router for dialect in dialects for router in dialect.routers):
        if router not in routers:  # dialects share some
            routers.append(router)
    return [*routers, reference.router, pages.router, *([models.admin_router] if settings.api_keys_file else [])]


def paths_of(settings: Settings) -> frozenset[str]:
    """Return the path templates of all routes."""
    return frozenset(
        route.path for router in enabled_routers(settings) for route in router.routes if isinstance(route, Route)
    )


def overload_status(settings: Settings) -> errors.OverloadStatus:
    """Return the function from a path to the status of a refusal under overload."""
    only_503 = {path for dialect in enabled_dialects(settings) if dialect.retries_5xx_only for path in dialect.paths}
    return lambda path: 503 if path in only_503 else int(settings.overload_status)
