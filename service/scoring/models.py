"""The models that are served: which one answers a request, and how one takes the place of another."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from service.metrics import Metrics
from service.scoring.pipeline import Pipeline
from tinyrm.api import PromptRequest
from tinyrm.bundle import Bundle
from tinyrm.errors import TinyRMError, UnknownModel

log = structlog.get_logger("tinyrm")

Build = Callable[[Bundle], Awaitable[Pipeline]]


@dataclass
class Deployment:
    """folders: of the bundles, the default first. specialists: domain -> the folder of the one that answers it.

    before_drain: what has to end before the models take nothing more, given the seconds that are left.
    ask_reload: begins to look for new revisions; whose business that is depends on where the engines are.

    A request keeps the pipeline that it was given: another may take that one's place meanwhile.
    """

    pipelines: dict[Path, Pipeline]
    specialists: Mapping[str, Path]
    metrics: Metrics
    drain_timeout_s: float
    ask_reload: Callable[[], None]
    before_drain: list[Callable[[float], Awaitable[None]]] = field(default_factory=list)
    _leaving: "set[asyncio.Task[None]]" = field(default_factory=set)

    @property
    def default(self) -> Pipeline:
        return next(iter(self.pipelines.values()))

    def of(self, request: PromptRequest) -> Pipeline:
        """By the model that the request names, else by its domain. Raises UnknownModel."""
        if request.model is None:
            folder = self.specialists.get(request.domain or "")
            return self.pipelines[folder] if folder else self.default
        for pipeline in self.pipelines.values():
            if request.model in (pipeline.manifest.name, pipeline.manifest.identity):
                return pipeline
        served = ", ".join(pipeline.manifest.identity for pipeline in self.pipelines.values())
        raise UnknownModel(f"no model {request.model!r} is served here; there is {served}")

    def trouble(self) -> str | None:
        """Of the first model that has any."""
        loads = (pipeline.backend.load() for pipeline in self.pipelines.values())
        return next((load.trouble for load in loads if load.trouble), None)

    def retry_after_s(self) -> int:
        return max(pipeline.backend.retry_after_s() for pipeline in self.pipelines.values())

    async def reload(self, build: Build) -> None:
        """Serve what the folders hold now. What cannot be opened or started leaves the old one in its place."""
        for folder, old in list(self.pipelines.items()):
            try:
                bundle = await asyncio.to_thread(Bundle.open, folder)
                if bundle.manifest.identity == old.manifest.identity:
                    log.info("unchanged", model=old.manifest.identity)
                    continue
                self.replace(folder, await build(bundle))
            except TinyRMError as error:
                log.error("cannot reload", folder=str(folder), type=error.type, reason=str(error))

    def replace(self, folder: Path, new: Pipeline) -> None:
        """From now on new requests are `new`'s; the old one answers what it accepted and leaves."""
        old = self.pipelines[folder]
        self.pipelines[folder] = new
        self.describe()
        leaving = asyncio.create_task(old.retire(self.drain_timeout_s))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        log.info("reloaded", model=new.manifest.identity, instead_of=old.manifest.identity)

    async def drain(self, timeout_s: float) -> None:
        """All of them, those on their way out too."""
        ends_at = time.perf_counter() + timeout_s
        for end in self.before_drain:
            await end(timeout_s)
        timeout_s = max(0.0, ends_at - time.perf_counter())
        await asyncio.gather(*(pipeline.drain(timeout_s) for pipeline in self.pipelines.values()), *self._leaving)

    def engine_pids(self) -> list[int]:
        """Of the engines that this process started and that run."""
        backends = (pipeline.backend for pipeline in self.pipelines.values())
        return [backend.engine_pid for backend in backends if backend.engine_pid]

    def describe(self) -> None:
        """Tell the metrics what is served."""
        self.metrics.present.update(
            [(pipeline.manifest, pipeline.backend.greeting) for pipeline in self.pipelines.values()],
            lambda: [pipeline.backend.load() for pipeline in self.pipelines.values()],
        )


class Reload:
    """One at a time, however often it is asked for; asked during one, once more after it."""

    def __init__(self, reload: Callable[[], Coroutine[None, None, None]]) -> None:
        self._reload = reload
        self._asked = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        self._asked = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._asked:
            self._asked = False
            await self._reload()


def parse_specialists(text: str) -> dict[str, Path]:
    """`domain=folder,...`. Raises ValueError."""
    pairs = [part.split("=", 1) for part in text.split(",") if part.strip()]
    if any(len(pair) != 2 or not all(map(str.strip, pair)) for pair in pairs):
        raise ValueError("specialists are written as domain=folder, separated by commas")
    return {domain.strip(): Path(folder.strip()) for domain, folder in pairs}


def folders_of(default: Path, specialists: Mapping[str, Path]) -> Iterable[Path]:
    """Each folder once, the default first."""
    return dict.fromkeys([default, *specialists.values()])
