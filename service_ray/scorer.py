"""A replica: the whole service but for its server. Its queue, its engine and its answers are those of one machine."""

from typing import Any

import ray
from ray import serve

from service.app import create_app, create_state
from service.logs import configure
from service.settings import Settings
from service_ray.exposition import labelled
from service_ray.hosted import Hosted, RawReply, RawRequest
from service_ray.options import Options, settings_of
from service_ray.store import local_bundle

LEAST_THREADS = 1


class Unfit(RuntimeError):
    """Tells Serve to put another replica in this one's place."""


class Scorer:
    """One bundle, opened once. Not ready before its engine has run, and gone only when it has answered."""

    async def __init__(self, options: Options) -> None:
        folder = local_bundle(options.bundle, options.store)
        settings = settings_of(options.settings, model=folder)
        configure(settings.log_level, settings.log_format)
        state = create_state(with_own_processors(settings))
        self._registry = state.registry
        # Before the application's lifespan, which would hide why the models do not start.
        await self._registry.start()
        self._hosted = Hosted(create_app(state))
        await self._hosted.start()

    async def answer(self, request: RawRequest) -> RawReply:
        return await self._hosted.answer(RawRequest(*request))

    async def metrics(self) -> str:
        """The page of /metrics, of this replica."""
        page = self._registry.metrics.expose().decode()
        return labelled(page, serve.get_replica_context().replica_id.unique_id)

    async def check_health(self) -> None:
        trouble = self._registry.unhealthy_reason()
        if trouble:
            raise Unfit(trouble)

    async def __del__(self) -> None:
        """Serve calls it when what this replica had accepted is answered, or its patience is over."""
        if hasattr(self, "_hosted"):
            await self._hosted.stop()


def with_own_processors(settings: Settings) -> Settings:
    """Ray promises processors and does not bind a process to them: an engine would take all of the machine."""
    own: dict[str, Any] = ray.get_runtime_context().get_assigned_resources()
    if settings.threads or not own.get("CPU"):
        return settings
    return settings.model_copy(update={"threads": max(LEAST_THREADS, int(own["CPU"] // settings.streams))})
