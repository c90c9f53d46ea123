"""A queue with its engine, which returns the logits of sequences: in this process or in another one."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Protocol

from service.engine.batcher import Batcher
from service.engine.engine_process import EngineProcess
from service.engine.reuse import ReusingEngine, Window
from service.engine.types import NO_NEW_WORK, BatchOutput, BatchReport, EngineProfile, EngineResult, QueueLoad
from service.engine.worker import EngineProcessOptions
from service.metrics import Metrics
from service.settings import Settings
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.counting import flop_counter
from tinyrm.encoding import Encoding
from tinyrm.engines import EngineOptions
from tinyrm.errors import EngineRestarting
from tinyrm.manifest import Manifest

# A fairness key that has nothing in a queue.
NEW_CLIENT = object()


class Backend(Protocol):
    """A queue and its engine for one bundle: `LocalBackend`, or `workers.queue_client.QueueClient` in a worker."""

    profile: EngineProfile

    @property
    def engine_pid(self) -> int | None:
        """The id of the engine's process if this process started it and it runs."""

    def load(self) -> QueueLoad: ...

    def refuse_if_busy(self, timeout_s: float | None = None, fairness_key: Hashable = None) -> None:
        """Raise a subclass of Unavailable if a request of this client would be refused now."""

    def refuse_if_closed(self) -> None:
        """Raise ShuttingDown if nothing is queued any more, not even the rest of accepted work."""

    async def submit(
        self,
        sequences: tuple[Encoding, ...],
        *,
        fairness_key: Hashable,
        timeout_s: float | None,
        wait_for_room: bool,
    ) -> EngineResult:
        """Queue sequences that belong together and return their result; see `Batcher.submit`."""

    def retry_after_s(self) -> int: ...

    async def drain(self, timeout_s: float) -> None:
        """Accept no new work, finish accepted work, and stop."""


class ServedEngine(Protocol):
    """The engine behind a queue: `EngineProcess`."""

    profile: EngineProfile
    restarts: int

    @property
    def pid(self) -> int | None: ...

    @property
    def is_up(self) -> bool: ...

    def unhealthy_reason(self) -> str | None:
        """Return why the engine is not healthy, or None if it is."""

    async def run(self, sequences: Sequence[Encoding], /) -> BatchOutput: ...

    async def stop(self) -> None: ...


class LocalBackend(Backend):
    """A queue in this process, and the engine that this process started."""

    def __init__(self, settings: Settings, manifest: Manifest, engine: ServedEngine, metrics: Metrics) -> None:
        self.profile, self.engine = engine.profile, engine
        metrics.declare_reuse(manifest.name)
        self._reusing = ReusingEngine(
            engine.run,
            manifest.count_logits,
            Window(settings.reuse_s, settings.max_reuse_bytes) if settings.reuse_s else None,
            restarts=lambda: engine.restarts,
            on_reuse=partial(metrics.observe_reuse, manifest.name),
        )
        self.batcher = Batcher(
            self._reusing.run,
            self.profile.info,
            settings.max_queue_tokens,
            settings.max_wait_s,
            self._observe,
            max_batch_tokens=settings.max_batch_tokens,
            tokens_per_s=self.profile.tokens_per_s,
            count_logits=manifest.count_logits,
        )
        self._metrics = metrics
        self._flops = flop_counter(manifest.geometry, manifest.head, manifest.special_tokens)

    @property
    def engine_pid(self) -> int | None:
        return self.engine.pid

    def load(self) -> QueueLoad:
        batcher = self.batcher
        reason = self.engine.unhealthy_reason() if batcher.is_alive else NO_NEW_WORK
        return QueueLoad(
            batcher.queue_items,
            batcher.queue_tokens,
            batcher.estimated_total_s(),
            self.engine.restarts,
            self.engine.is_up,
            reason,
            batcher.estimated_wait_s(NEW_CLIENT),
            batcher.is_full,
        )

    def refuse_if_busy(self, timeout_s: float | None = None, fairness_key: Hashable = None) -> None:
        self.batcher.refuse_if_full(timeout_s=timeout_s, fairness_key=fairness_key)
        if not self.engine.is_up:
            raise EngineRestarting("the engine failed and is being restarted; try again")

    def refuse_if_closed(self) -> None:
        self.batcher.refuse_if_closed()

    async def submit(
        self,
        sequences: tuple[Encoding, ...],
        *,
        fairness_key: Hashable,
        timeout_s: float | None,
        wait_for_room: bool,
    ) -> EngineResult:
        self.batcher.refuse_if_closed()
        if (logits := self._reusing.known(sequences)) is not None:  # they need no turn in the queue
            return EngineResult(logits, 0.0, 0.0)
        return await self.batcher.submit(
            sequences, fairness_key=fairness_key, timeout_s=timeout_s, wait_for_room=wait_for_room
        )

    def retry_after_s(self) -> int:
        return self.batcher.retry_after_s()

    async def drain(self, timeout_s: float) -> None:
        await self.batcher.drain(timeout_s)
        await self.engine.stop()

    def _observe(self, report: BatchReport) -> None:
        gflops = 0.0 if report.failed else sum(map(self._flops, report.sequences)) / 1e9
        self._metrics.observe_batch(
            len(report.sequences), report.real_tokens, report.padded_tokens, report.run_s, gflops
        )
        if report.failed:
            self._metrics.observe_engine_error()
        else:
            self._metrics.observe_mfu(gflops / max(report.run_s, 1e-6) / self.profile.peak_gflops_per_s)


def engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(settings.engine, settings.precision, settings.threads, settings.streams)


OpenEngine = Callable[[Settings, Bundle], Awaitable[ServedEngine]]


async def start_engine(settings: Settings, bundle: Bundle) -> ServedEngine:
    """Start an engine in its own process. Raises EngineUnavailable."""

    def probe() -> Encoding:
        one, *_ = bundle.encoder().encode(Comparison("2 + 2?", "4", "5"), bundle.manifest.spec.instruction(None))
        return one

    options = EngineProcessOptions(
        engine_options(settings), settings.peak_gflops_per_s, settings.log_level, settings.log_format
    )
    engine = EngineProcess(bundle, options, probe, settings.engine_timeout_s)
    try:
        await engine.start()
    except BaseException:
        await engine.stop()
        raise
    return engine


async def start_backend(
    settings: Settings, bundle: Bundle, metrics: Metrics, open_engine: OpenEngine = start_engine
) -> LocalBackend:
    """Start an engine and its queue. Raises EngineUnavailable."""
    return LocalBackend(settings, bundle.manifest, await open_engine(settings, bundle), metrics)
