"""The engine in its own process: watched, and replaced when it crashes, hangs or returns other logits."""

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from service.engine.pinned import PinnedFiles, unpin
from service.engine.rpc import Connection, dump_sequences, load_logits
from service.engine.supervisor import ChildProcess, run_in_background, supervise
from service.engine.types import BatchOutput, EngineProfile
from service.engine.worker import EngineProcessOptions
from tinyrm.bundle import Bundle
from tinyrm.deadline import Deadline
from tinyrm.encoding import Encoding
from tinyrm.errors import EngineError, EngineFailed, EngineHung, EngineRestarting, EngineUnavailable

log = structlog.get_logger("tinyrm")

# Time for a start. Reading weights takes seconds; TensorRT compiles for minutes, but only the first time.
FIRST_START_S, NEXT_START_S = 1800.0, 10.0
# A run may take this many times its expected duration, because the machine may have other work. The engine counts as
# late this long after that.
PATIENCE = 5
LATE_S = 1.0
PROBE_INTERVAL_S = 0.5
# The probe's logits may change only by rounding.
PROBE_TOLERANCE = 1e-2
FIRST_DELAY_S, MAX_DELAY_S = 0.1, 10.0
# If no engine has started for this long, the service ends, so that whatever started it can start it anew.
GIVE_UP_S = 300.0
# Accepted work waits this long for the next engine, then it is refused.
MAX_DOWN_S = 10.0
# After its connection is closed, the process gets this long to end by itself, which gives its exit code.
EXIT_S = 1.0
# Waits for the engine are divided into parts of this length; a pause counts as one of them.
TICK_S = 0.25

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Run:
    """A run that is in progress."""

    started_s: float
    expected_s: float


@dataclass(slots=True, eq=False)
class RunningEngine:
    """One process of the engine, and the connection to it.

    runs: those in progress.
    end_reason: why it was ended; the first reason counts.
    """

    child: ChildProcess
    connection: Connection
    profile: EngineProfile
    runs: set[Run] = field(default_factory=set)
    end_reason: str = ""

    @property
    def started_s(self) -> float:
        return self.child.started_s

    def end(self, reason: str) -> None:
        """Kill the process. Its runs fail with EngineFailed."""
        self.end_reason = self.end_reason or reason
        self.child.kill()
        self.connection.fail(EngineFailed(f"the engine failed: {self.end_reason}; try again"))

    async def wait(self) -> None:
        """Wait until the process has ended and its runs have failed."""
        ends: list[asyncio.Future[Any]] = [self.connection.lost, self.child.ended]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        code = await self.child.stop(EXIT_S)
        self.end(f"its process ended with code {code}")


class EngineProcess:
    """Runs sequences in another process, and replaces that process when it fails.

    bundle: if it has private copies of its files, a replacement opens the same ones, whatever its folder holds by then.
    probe: returns a sequence, whose logits are known from the first start. A replacement must return the same before it
    gets work; later, the probe runs whenever the engine is idle.
    timeout_s: a run that takes this much longer than expected has hung, and the process is killed.
    module: the module that the process runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: EngineProcessOptions,
        probe: Callable[[], Encoding],
        timeout_s: float,
        *,
        module: str = "service.engine.worker",
    ) -> None:
        self.profile: EngineProfile
        self.restarts = 0
        self._bundle, self._options, self._probe = bundle, options, cache(probe)
        self._timeout_s, self._module = timeout_s, module
        self._engine: RunningEngine | None = None
        self._up = asyncio.Event()
        self._down_since = time.monotonic()
        self._last_reply_s = 0.0
        self._probe_logits: NDArray[np.float32] | None = None
        self._start_timeout_s = FIRST_START_S
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the process and wait until it is ready. Raises EngineError's subclasses."""
        engine = await self._open()
        self.profile = engine.profile
        # `auto` may find another engine later, whose logits differ.
        chosen = replace(self._options.engine, engine=self.profile.info.name)
        self._options = replace(self._options, engine=chosen, peak_gflops_per_s=self.profile.peak_gflops_per_s)
        self._start_timeout_s = PATIENCE * (time.monotonic() - engine.started_s) + NEXT_START_S

        async def restart() -> RunningEngine:
            self.restarts += 1
            return await self._open()

        supervision = supervise(
            restart,
            lambda ended: self._lose(ended, ended.end_reason),
            name="engine",
            child=engine,
            first_delay_s=FIRST_DELAY_S,
            max_delay_s=MAX_DELAY_S,
            give_up_s=GIVE_UP_S,
        )
        self._tasks = [
            run_in_background(supervision, "engine supervisor"),
            run_in_background(self._keep_probing(), "engine probe"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._engine:
            self._engine.end("the service is shutting down")
            await self._engine.child.stop(EXIT_S)
        unpin(self._bundle)

    @property
    def pid(self) -> int | None:
        return self._engine.child.pid if self._engine else None

    @property
    def is_up(self) -> bool:
        return self._engine is not None

    def unhealthy_reason(self) -> str | None:
        """Return why the engine is not healthy; None if a run has succeeded recently."""
        if self._engine is None:
            return "the engine failed and is being restarted"
        now = time.monotonic()
        if any(now > run.started_s + PATIENCE * run.expected_s + LATE_S for run in self._engine.runs):
            return "the engine has not replied for longer than its work should take"
        if not self._engine.runs and now > self._last_reply_s + PROBE_INTERVAL_S + LATE_S:
            return "no run of the engine has ended recently"
        return None

    async def run(self, sequences: Sequence[Encoding]) -> BatchOutput:
        """Return the logits. Raises EngineFailed, EngineHung, or EngineRestarting if the engine is down for too long.

        The caller must refuse logits that are not finite, row by row; here they also start a probe.
        """
        if self._engine is None:
            try:
                async with asyncio.timeout(Deadline(self._down_since + MAX_DOWN_S).left_s()):
                    await self._up.wait()
            except TimeoutError:
                raise EngineRestarting("the engine failed and could not be restarted; see the service's log") from None
        engine = self._engine
        if engine is None:
            raise EngineFailed("the engine failed again right after its restart")
        output = await self._call(engine, sequences)
        if not np.isfinite(output.logits).all():
            await self._check(engine)
        return output

    async def _call(self, engine: RunningEngine, sequences: Sequence[Encoding]) -> BatchOutput:
        lengths, ids = dump_sequences(sequences)
        run = Run(time.monotonic(), sum(lengths) / engine.profile.tokens_per_s)
        limit_s = PATIENCE * run.expected_s + self._timeout_s
        engine.runs.add(run)
        try:
            head, logits = await wait_awake(engine.connection.call({"lengths": lengths}, ids), limit_s)
        except TimeoutError:
            self._lose(engine, f"no reply within {limit_s:.1f} s")
            raise EngineHung(f"the engine did not reply within {limit_s:.1f} s; it is being restarted") from None
        finally:
            engine.runs.discard(run)
        self._last_reply_s = time.monotonic()
        return BatchOutput(load_logits(logits, len(sequences)), head["seconds"])

    async def _open(self) -> RunningEngine:
        """Start a process that opens the bundle, and compare its logits for the probe with the first ones."""
        files = self._bundle.files
        descriptors = files.descriptors if isinstance(files, PinnedFiles) else {}
        head = {
            "open": asdict(self._options),
            "bundle": {
                "folder": str(self._bundle.folder),
                "manifest": self._bundle.manifest.to_json(),
                "descriptors": descriptors,
            },
        }
        ours, theirs = socket.socketpair()
        with theirs:
            link = theirs.fileno()
            command = [sys.executable, "-m", self._module, str(link)]
            child = ChildProcess(command, pass_fds=[link, *descriptors.values()])
        ended_early = EngineUnavailable("the engine ended before it was ready; see its log")
        connection = Connection(on_loss=lambda: None if self._engine else connection.fail(ended_early))
        try:
            self._probe()  # here, while the process imports what it needs
            await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
            reply, _ = await wait_awake(connection.call(head), self._start_timeout_s)
            engine = RunningEngine(child, connection, EngineProfile.parse(reply["profile"]))
            logits = (await self._call(engine, [self._probe()])).logits
            if not np.isfinite(logits).all():
                raise EngineUnavailable("the engine's logits for the probe are not finite")
            if self._probe_logits is None:
                self._probe_logits = logits
            elif not self._is_as_before(logits):
                raise EngineFailed("its logits for the probe differ from those of the first engine")
        except BaseException as error:
            child.kill()
            connection.fail(ended_early)
            if isinstance(error, TimeoutError):
                raise EngineUnavailable(f"the engine was not ready within {self._start_timeout_s:.0f} s") from None
            raise
        self._engine = engine
        self._up.set()
        log.info("engine ready", engine=engine.profile.info.name, precision=engine.profile.info.precision)
        return engine

    def _lose(self, engine: RunningEngine, reason: str) -> None:
        engine.end(reason)
        if self._engine is engine:
            self._engine = None
            self._up.clear()
            self._down_since = time.monotonic()
            log.error("engine lost", reason=reason)

    async def _keep_probing(self) -> None:
        while True:
            engine = self._engine
            if engine and not engine.runs and time.monotonic() - self._last_reply_s >= PROBE_INTERVAL_S:
                await self._check(engine)
            await asyncio.sleep(PROBE_INTERVAL_S / 2)

    async def _check(self, engine: RunningEngine) -> None:
        """Run the probe. An engine that returns other logits is replaced."""
        try:
            logits = (await self._call(engine, [self._probe()])).logits
        except EngineError as error:
            self._lose(engine, str(error))
            return
        if not self._is_as_before(logits):
            self._lose(engine, "its logits for the probe have changed")

    def _is_as_before(self, logits: NDArray[np.float32]) -> bool:
        expected = self._probe_logits
        return expected is not None and np.allclose(logits, expected, atol=PROBE_TOLERANCE, rtol=0)


async def wait_awake(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Return the result of `work`. Cancel it and raise TimeoutError after `timeout_s`.

    Time in which this process did not run does not count: when it continues after a pause, the result may be there and
    not read yet, or the other process may have been paused as well.
    """
    task, left_s = asyncio.ensure_future(work), timeout_s
    try:
        while left_s > -TICK_S:  # one part more, in case that the last one was a pause
            await asyncio.wait({task}, timeout=min(max(left_s, 0.0) or TICK_S, TICK_S))
            if task.done():
                return task.result()
            left_s -= TICK_S
    finally:
        task.cancel()
    raise TimeoutError
