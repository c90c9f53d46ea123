"""The served models: select one for a request, and replace an old revision by a new one."""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import structlog

from service.engine.backend import Backend, engine_options
from service.engine.pinned import open_pinned
from service.engine.supervisor import run_in_background
from service.logs import describe_failure
from service.metrics import Metrics, ServedModel
from service.scoring.pipeline import Pipeline, Question
from service.settings import PREFIX, Settings, split_list
from tinyrm.bundle import Bundle
from tinyrm.errors import EngineUnavailable, InvalidSettings, NoCascade, UnknownModel
from tinyrm.places import find

log = structlog.get_logger("tinyrm")

StartBackend = Callable[[Bundle], Awaitable[Backend]]


class CascadePipelines(NamedTuple):
    """The two models of a cascade.

    alone: scores responses alone.
    pairs: reads a pair.
    """

    alone: Pipeline
    pairs: Pipeline


class ModelRegistry:
    """One pipeline for each configured bundle, the default first.

    start_backend: starts the queue and the engine of a bundle; None in a worker, whose parent starts them.

    A request keeps its pipeline, even if that is replaced meanwhile.
    """

    def __init__(self, settings: Settings, metrics: Metrics, start_backend: StartBackend | None = None) -> None:
        self.metrics = metrics
        self.pipelines: dict[Path, Pipeline] = {}
        self._settings, self._start_backend = settings, start_backend
        self._specialists = parse_specialists(settings)
        self._retiring: dict[asyncio.Task[None], Pipeline] = {}

    async def start(self, opened: Mapping[Path, Bundle] | None = None) -> None:
        """Open the bundles and start their engines, unless they are running.

        opened: bundles by folder, if they are open already.

        Raises InvalidBundle, InvalidSettings, EngineUnavailable.
        """
        if self.pipelines:
            return
        bundles = opened or open_bundles(self._settings)
        models: dict[Path, tuple[Bundle, Backend]] = {}
        try:
            for folder, bundle in bundles.items():
                models[folder] = bundle, await self._start(bundle)
            self.serve(models)
        except BaseException:
            for _, backend in models.values():
                await backend.drain(0)
            raise

    def serve(self, models: Mapping[Path, tuple[Bundle, Backend]]) -> None:
        """Serve bundles, by their folders, with their backends. Raises InvalidBundle."""
        self.pipelines = {folder: self._make_pipeline(bundle, backend) for folder, (bundle, backend) in models.items()}
        self._describe()

    @property
    def default(self) -> Pipeline:
        return next(iter(self.pipelines.values()))

    def resolve(self, question: Question) -> Pipeline:
        """Return the pipeline for the question's model, or else for its domain. Raises UnknownModel."""
        if question.model is None:
            folder = self._specialists.get(question.domain or "")
            return self.pipelines[folder] if folder else self.default
        for pipeline in self.pipelines.values():
            if question.model in (pipeline.manifest.name, pipeline.manifest.identity):
                return pipeline
        served = ", ".join(pipeline.manifest.identity for pipeline in self.pipelines.values())
        raise UnknownModel(f"no model {question.model!r} is served here; available: {served}")

    def resolve_cascade(self, question: Question) -> CascadePipelines:
        """Return the two pipelines of a cascade: that of `resolve`, and the one of the other kind.

        Of several, the one whose model has the question's domain.

        Raises UnknownModel; NoCascade if there is no such pipeline, or more than one.
        """
        own = self.resolve(question)
        others = [one for one in self.pipelines.values() if {stage_of(one), stage_of(own)} == {"alone", "pairs"}]
        if len(others) > 1:
            others = [one for one in others if question.domain in one.manifest.spec.domains]
        if len(others) != 1:
            served = ", ".join(
                f"{one.manifest.identity} reads a {one.reads}"
                + (" whose scores depend on each other" if stage_of(one) is None else "")
                for one in self.pipelines.values()
            )
            raise NoCascade(
                "a cascade needs one model that scores responses alone and one that reads a pair: "
                f"{own.manifest.identity} and one of the other kind, or exactly one of several with the request's "
                f"domain; served: {served}"
            )
        (other,) = others
        return CascadePipelines(own, other) if own.scores_alone else CascadePipelines(other, own)

    def unhealthy_reason(self) -> str | None:
        """Return why a model is not ready; None if all are."""
        loads = (pipeline.load() for pipeline in self.pipelines.values())
        return next((load.unhealthy_reason for load in loads if load.unhealthy_reason), None)

    def retry_after_s(self) -> int:
        """Return the whole seconds until the work that waits now is done, for Retry-After."""
        return max(
            math.ceil(pipeline.encode_wait_s()) + pipeline.backend.retry_after_s()
            for pipeline in self.pipelines.values()
        )

    def encode_wait_s(self) -> float:
        """Return the seconds until all texts that wait in this process have been encoded."""
        return max((pipeline.encode_wait_s() for pipeline in self.pipelines.values()), default=0.0)

    def engine_pids(self) -> list[int]:
        """Return the ids of the running engine processes that this process started."""
        backends = (pipeline.backend for pipeline in self.pipelines.values())
        return [backend.engine_pid for backend in backends if backend.engine_pid]

    async def reload(self) -> None:
        """Open the folders again and serve new revisions. If one cannot be opened or started, the old one stays."""
        for folder, old in list(self.pipelines.items()):
            backend = None
            try:
                bundle = await asyncio.to_thread(open_bundle, self._settings, folder)
                if bundle.manifest.identity == old.manifest.identity:
                    log.info("unchanged", model=old.manifest.identity)
                    continue
                backend = await self._start(bundle)
                self.replace(folder, bundle, backend)
            except Exception as error:  # noqa: BLE001  # whatever it is, the old model stays, and one line names it
                log.error("cannot reload", folder=str(folder), **describe_failure(error))
                if backend:
                    await backend.drain(0)

    def replace(self, folder: Path, bundle: Bundle, backend: Backend) -> None:
        """Send new requests to `bundle`; the old one finishes accepted work and stops."""
        old, new = self.pipelines[folder], self._make_pipeline(bundle, backend)
        self.pipelines[folder] = new
        self._describe()
        retiring = run_in_background(old.retire(self._settings.drain_timeout_s), "retiring model")
        self._retiring[retiring] = old
        retiring.add_done_callback(self._retiring.pop)
        log.info("reloaded", model=new.manifest.identity, instead_of=old.manifest.identity)

    def refuse_new_work(self) -> None:
        """Refuse what is not accepted yet; accepted lists and groups go on."""
        for pipeline in self.pipelines.values():
            pipeline.refuse_new_work()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work, finish accepted work, and stop all engines, also those of old revisions."""

        async def finish(retiring: "asyncio.Task[None]", pipeline: Pipeline) -> None:
            await asyncio.wait({retiring}, timeout=timeout_s)
            if not retiring.done():
                await pipeline.drain(0)

        await asyncio.gather(
            *(pipeline.drain(timeout_s) for pipeline in self.pipelines.values()),
            *(finish(task, pipeline) for task, pipeline in self._retiring.items()),
        )

    async def _start(self, bundle: Bundle) -> Backend:
        if self._start_backend is None:
            raise EngineUnavailable("a worker starts no engines")
        return await self._start_backend(bundle)

    def _make_pipeline(self, bundle: Bundle, backend: Backend) -> Pipeline:
        # Requests are encoded in threads of their own. The tokenizer's threads are one pool for the whole process, in
        # which every short text would wait behind the long ones.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return Pipeline(
            bundle.manifest,
            bundle.encoder(),
            backend,
            self.metrics,
            default_swap=self._settings.default_swap,
            default_reasoning=self._settings.reasoning,
            max_wait_s=self._settings.max_wait_s,
            max_set_tokens=self._settings.max_sequence_tokens,
        )

    def _describe(self) -> None:
        """Show the current models in the metrics."""
        pipelines = list(self.pipelines.values())
        served = [
            ServedModel(
                name=pipeline.manifest.name,
                revision=pipeline.manifest.revision,
                engine=pipeline.backend.profile.info.name,
                precision=pipeline.backend.profile.info.precision,
                peak_gflops_per_s=pipeline.backend.profile.peak_gflops_per_s,
            )
            for pipeline in pipelines
        ]
        self.metrics.present.update(served, lambda: [pipeline.load() for pipeline in pipelines])


def stage_of(pipeline: Pipeline) -> Literal["alone", "pairs"] | None:
    """Return what a model can be in a cascade."""
    if pipeline.reads == "pair":
        return "pairs"
    return "alone" if pipeline.scores_alone else None


class Reload:
    """Runs `reload`, never twice at a time. Requests during a run cause one more run after it."""

    def __init__(self, reload: Callable[[], Coroutine[None, None, None]]) -> None:
        self._reload = reload
        self._is_requested = False
        self._task: asyncio.Task[None] | None = None

    def request(self) -> None:
        """Start a reload, or another one after the current one. Return at once."""

        async def run() -> None:
            while self._is_requested:
                self._is_requested = False
                try:
                    await self._reload()
                except Exception:
                    log.exception("reload failed; the served models stay")

        self._is_requested = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(run())


def open_bundle(settings: Settings, folder: Path) -> Bundle:
    """Open a bundle, keep private copies of its files, and check that it supports the settings: at start and reload.

    Raises InvalidBundle, InvalidSettings.
    """
    bundle = open_pinned(folder, engine_options(settings))
    manifest = bundle.manifest
    for domain, specialist in parse_specialists(settings).items():
        if specialist == folder and domain not in manifest.spec.domains:
            raise InvalidSettings(
                f"{manifest.identity} has no domain {domain!r}, which {PREFIX}SPECIALISTS assigns to it"
            )
    if settings.default_swap == "auto" and manifest.reads == "pair" and manifest.auto_swap is None:
        raise InvalidSettings(
            f"{manifest.identity} was exported without a margin for swap auto; use {PREFIX}DEFAULT_SWAP=on"
        )
    settings.check_against(manifest.spec.max_tokens)
    return bundle


def open_bundles(settings: Settings) -> dict[Path, Bundle]:
    """Open each bundle, the default first. Raises as `open_bundle` and `bundle_folders` do."""
    return {folder: open_bundle(settings, folder) for folder in bundle_folders(settings)}


def parse_specialists(settings: Settings) -> dict[str, Path]:
    """Return a dictionary from domain to folder, as `bundle_folders` finds it. Raises InvalidSettings."""
    pairs = [part.split("=", 1) for part in settings.specialists.split(",") if part.strip()]
    if any(len(pair) != 2 or not all(map(str.strip, pair)) for pair in pairs):
        raise InvalidSettings(f"{PREFIX}SPECIALISTS: specialists must be written as domain=place, separated by commas")
    return {domain.strip(): find(place, settings.cache) for domain, place in pairs}


def bundle_folders(settings: Settings) -> list[Path]:
    """Return the folder of each bundle once, the default first, after fetching what is not in the cache yet.

    Raises InvalidSettings, InvalidInput, InvalidBundle.
    """
    specialists = parse_specialists(settings).values()
    places = [settings.model, *split_list(settings.more_models)]
    default, *more = (find(place, settings.cache) for place in places)
    return list(dict.fromkeys([default, *specialists, *more]))
