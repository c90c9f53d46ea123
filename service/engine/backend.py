"""What answers readings: a queue before an engine, here or in another process."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Protocol

from service.engine.batcher import Batcher, BatchReport, Ran
from service.engine.queue import Answered, Load
from service.engine.supervisor import EngineProcess
from service.engine.worker import EngineOptions, Greeting
from service.metrics import Metrics
from service.settings import Settings
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.encoding import Encoding
from tinyrm.errors import EngineRestarting
from tinyrm.flops import exact_flops
from tinyrm.manifest import Manifest

# Settings that are the engine's own.
ENGINE_SETTINGS = ("engine", "precision", "threads", "streams", "peak_gflops_per_s", "log_level", "log_format")


class Backend(Protocol):
    """Takes readings, gives logits, or says why not."""

    greeting: Greeting

    @property
    def engine_pid(self) -> int | None:
        """Of the engine, if this process started it and it runs."""

    def load(self) -> Load: ...

    def refuse_if_busy(self, timeout_s: float | None = None) -> None:
        """Raise one of Unavailable's kinds if a request would be refused now."""

    async def submit(
        self, readings: tuple[Encoding, ...], *, flow: Hashable, timeout_s: float | None, patient: bool
    ) -> Answered:
        """As `Batcher.submit`."""

    def retry_after_s(self) -> int: ...

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, finish what was taken, leave."""


class RunningEngine(Protocol):
    """An engine as a queue needs it."""

    greeting: Greeting
    restarts: int

    @property
    def pid(self) -> int | None: ...

    @property
    def is_up(self) -> bool: ...

    def trouble(self) -> str | None:
        """Why it is not to be relied on at this moment, if so."""

    async def run(self, readings: Sequence[Encoding], /) -> Ran: ...

    async def stop(self) -> None: ...


class LocalBackend:
    """Queue and engine of this process."""

    def __init__(self, settings: Settings, manifest: Manifest, engine: RunningEngine, metrics: Metrics) -> None:
        self.greeting, self.engine = engine.greeting, engine
        self.batcher = Batcher(
            engine.run,
            self.greeting.info,
            settings.max_queue_tokens,
            settings.max_wait_s,
            self._observe,
            max_batch_tokens=settings.max_batch_tokens,
            tokens_per_s=self.greeting.tokens_per_s,
        )
        self.submit = self.batcher.submit
        self.retry_after_s = self.batcher.retry_after_s
        self._metrics = metrics
        # A sum over all layers, and lengths repeat.
        self._flops = lru_cache(maxsize=16384)(partial(exact_flops, manifest.geometry))

    @property
    def engine_pid(self) -> int | None:
        return self.engine.pid

    def load(self) -> Load:
        batcher = self.batcher
        trouble = self.engine.trouble() if batcher.is_alive else "the service takes no new work"
        return Load(
            batcher.queue_items,
            batcher.queue_tokens,
            batcher.estimated_wait_s(),
            self.engine.restarts,
            self.engine.is_up,
            trouble,
        )

    def refuse_if_busy(self, timeout_s: float | None = None) -> None:
        self.batcher.refuse_if_full(timeout_s=timeout_s)
        if not self.engine.is_up:
            raise EngineRestarting("the engine failed and is being restarted; try again")

    async def drain(self, timeout_s: float) -> None:
        await self.batcher.drain(timeout_s)
        await self.engine.stop()

    def _observe(self, report: BatchReport) -> None:
        self._metrics.observe_batch(len(report.lengths), report.real_tokens, report.padded_tokens, report.run_s)
        if report.failed:
            self._metrics.observe_engine_error()
        else:
            gflops_per_s = sum(map(self._flops, report.lengths)) / 1e9 / max(report.run_s, 1e-6)
            self._metrics.observe_mfu(gflops_per_s / self.greeting.peak_gflops_per_s)


OpenEngine = Callable[[Settings, Bundle], Awaitable[RunningEngine]]


async def start_engine(settings: Settings, bundle: Bundle) -> RunningEngine:
    """In a process of its own. Raises EngineUnavailable."""
    (probe,) = bundle.encoder().encode(Comparison("2 + 2?", "4", "5"), bundle.manifest.spec.instruction(None))
    shared = {name: getattr(settings, name) for name in ENGINE_SETTINGS}
    engine = EngineProcess(EngineOptions(str(bundle.folder), **shared), probe, settings.engine_timeout_s)
    await engine.start()
    return engine


async def start_backend(
    settings: Settings, bundle: Bundle, metrics: Metrics, open_engine: OpenEngine = start_engine
) -> LocalBackend:
    """An engine that has run, and its queue. Raises EngineUnavailable."""
    return LocalBackend(settings, bundle.manifest, await open_engine(settings, bundle), metrics)
