"""A replica: the whole service except its server, with its own queue and engine."""

from typing import Any

import ray
from ray import serve

from service.app import create_app, create_state
from service.dialects.table import refuse_scattered_cohorts
from service.logs import configure
from service.settings import Settings
from service_ray.asgi import AsgiRunner, RawReply, RawRequest
from service_ray.config import RayConfig, make_settings
from service_ray.metrics import label_page
from service_ray.store import fetch_bundle


class UnhealthyReplica(RuntimeError):
    """Raised so that Serve replaces this replica."""


class Replica:
    """Serves one bundle. Ready after the first run of its engine; ends after its last accepted request."""

    async def __init__(self, config: RayConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        folder = fetch_bundle(config.bundle, config.store, config.revision)
        settings = make_settings(config.settings, model=folder)
        configure(settings.log_level, settings.log_format)
        refuse_scattered_cohorts(settings)
        state = create_state(limit_threads(settings), gets_all_requests=False)
        self._registry = state.registry
        # Before the lifespan, which would hide the reason if the models do not start.
        await self._registry.start()
        # Without connections: a call that is cancelled is one whose client has left.
        self._runner = AsgiRunner(create_app(state, has_connections=False))
        await self._runner.start()

    async def call(self, request: RawRequest) -> RawReply:
        return await self._runner.call(RawRequest(*request))

    async def metrics(self) -> str:
        """Return the metrics page of this replica."""
        page = self._registry.metrics.expose().decode()
        return label_page(page, serve.get_replica_context().replica_id.unique_id)

    async def check_health(self) -> None:
        reason = self._registry.unhealthy_reason()
        if reason:
            raise UnhealthyReplica(reason)

    async def __del__(self) -> None:
        """Stop. Serve calls this when accepted requests have replies, or after graceful_shutdown_timeout_s."""
        if hasattr(self, "_runner"):
            await self._runner.stop()


def limit_threads(settings: Settings) -> Settings:
    """Return settings with a thread for each CPU that Ray assigned, because Ray does not bind a process to CPUs."""
    assigned: dict[str, Any] = ray.get_runtime_context().get_assigned_resources()
    if settings.threads or not assigned.get("CPU"):
        return settings
    return settings.model_copy(update={"threads": max(1, int(assigned["CPU"] // settings.streams))})
