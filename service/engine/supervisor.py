"""The engine, whichever process it is in at the moment: watched, and replaced when it crashes, hangs or lies."""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from service.engine.batcher import Ran
from service.engine.child import EngineChild
from service.engine.worker import EngineOptions, Greeting
from tinyrm.encoding import Encoding
from tinyrm.errors import EngineError, EngineFailed, EngineHung, EngineRestarting

log = structlog.get_logger("tinyrm")

# Reading weights takes seconds; TensorRT compiles for minutes, but only the first time.
FIRST_START_S, NEXT_START_S = 1800.0, 10.0
# How many times longer than the engine's rate predicts a run may take, on a machine that others use too, and how long
# beyond that before the engine counts as late.
PATIENCE = 5
LATE_S = 1.0
PROBE_INTERVAL_S = 0.5
# The probe's logits may move by rounding, never by more.
PROBE_TOLERANCE = 1e-2
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
# An engine that lived this long did not die of its own start.
SETTLED_S = 30.0
# Accepted work waits this long for another engine, then it is refused.
MAX_DOWN_S = 10.0


class EngineProcess:
    """Runs readings in a process of its own.

    probe: a reading whose answer is known from the start; it goes through the engine whenever nothing else does.
    timeout_s: a run that takes this much longer than it should has hung: the process is killed.
    """

    def __init__(self, options: EngineOptions, probe: Encoding, timeout_s: float) -> None:
        self.greeting: Greeting
        self.restarts = 0
        self._options, self._probe, self._timeout_s = options, probe, timeout_s
        self._child: EngineChild | None = None
        self._start_timeout_s = FIRST_START_S
        self._up = asyncio.Event()
        self._down_since = time.monotonic()
        self._answered = 0.0
        self._truth: NDArray[np.float32] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Raises EngineUnavailable if it does not start."""
        child = await self._open()
        self._tasks = [asyncio.create_task(self._keep(child)), asyncio.create_task(self._keep_probing())]
        self.greeting = child.greeting
        self._start_timeout_s = PATIENCE * (time.monotonic() - child.started) + NEXT_START_S

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._child:
            self._child.end("the service is shutting down")
            await asyncio.to_thread(self._child.leave)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def is_up(self) -> bool:
        return self._child is not None

    def trouble(self) -> str | None:
        """Why the engine is not to be relied on at this moment; None if something went through it just now."""
        if self._child is None:
            return "the engine failed and is being restarted"
        now = time.monotonic()
        if any(now > sent.at + PATIENCE * sent.expected_s + LATE_S for sent in self._child.sent.values()):
            return "the engine has not answered for longer than its work takes"
        if not self._child.sent and now > self._answered + PROBE_INTERVAL_S + LATE_S:
            return "nothing went through the engine lately"
        return None

    async def run(self, readings: Sequence[Encoding]) -> Ran:
        """Raises EngineFailed, its kind EngineHung, or EngineRestarting if there is no engine for too long.

        Logits that are not finite are the caller's to refuse, row by row; they also bring the probe forward.
        """
        child = await self._present()
        ran = await self._ask(child, readings)
        if not np.isfinite(ran.logits).all():
            await self._check(child)
        return ran

    async def _ask(self, child: EngineChild, readings: Sequence[Encoding]) -> Ran:
        sent = child.send(readings)
        limit_s = PATIENCE * sent.expected_s + self._timeout_s
        try:
            async with asyncio.timeout(limit_s):
                ran = await sent.answer
        except TimeoutError:
            self._lose(child, f"no answer within {limit_s:.1f} s")
            raise EngineHung(f"the engine did not answer within {limit_s:.1f} s; it is being restarted") from None
        self._answered = time.monotonic()
        return ran

    async def _present(self) -> EngineChild:
        if self._child is None:
            left_s = MAX_DOWN_S - (time.monotonic() - self._down_since)
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    await self._up.wait()
            except TimeoutError:
                raise EngineRestarting("the engine failed and does not start again; see the service's log") from None
        if self._child is None:
            raise EngineFailed("the engine failed again as soon as it had started")
        return self._child

    async def _open(self) -> EngineChild:
        child = await EngineChild.start(self._options, self._start_timeout_s)
        self._child = child
        self._up.set()
        log.info("engine ready", engine=child.greeting.info.name, precision=child.greeting.info.precision)
        return child

    async def _keep(self, child: EngineChild) -> None:
        """Listen; when the engine is lost, start another, later and later if it does not live."""
        delay_s = FIRST_DELAY_S
        while True:
            reason = await child.listen()
            self._lose(child, reason)
            delay_s = FIRST_DELAY_S if time.monotonic() - child.started > SETTLED_S else delay_s
            child, delay_s = await self._replace(delay_s)

    async def _replace(self, delay_s: float) -> tuple[EngineChild, float]:
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)
            self.restarts += 1
            try:
                return await self._open(), delay_s
            except (EngineError, OSError, TimeoutError) as error:
                log.error("engine does not start", reason=str(error), next_try_s=delay_s)

    def _lose(self, child: EngineChild, reason: str) -> None:
        child.end(reason)
        if self._child is child:
            self._child = None
            self._up.clear()
            self._down_since = time.monotonic()
            log.error("engine lost", reason=reason)

    async def _keep_probing(self) -> None:
        while True:
            child = self._child
            if child and not child.sent and time.monotonic() - self._answered >= PROBE_INTERVAL_S:
                await self._check(child)
            await asyncio.sleep(PROBE_INTERVAL_S / 2)

    async def _check(self, child: EngineChild) -> None:
        """Ask what is known. An engine that answers otherwise than at first is not asked again."""
        try:
            answer = (await self._ask(child, [self._probe])).logits
        except EngineError as error:
            self._lose(child, str(error))
            return
        if self._truth is None and np.isfinite(answer).all():
            self._truth = answer
        if self._truth is None or not np.allclose(answer, self._truth, atol=PROBE_TOLERANCE, rtol=0):
            self._lose(child, "it answers the probe otherwise than before")
