"""A backend in another process, as a front process sees it."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from pathlib import Path

from service.engine import messages
from service.engine.messages import Message
from service.engine.queue import Answered, Load
from service.engine.worker import Greeting
from service.settings import Settings
from tinyrm.encoding import Encoding
from tinyrm.errors import EngineRestarting, Overloaded, ShuttingDown

# The owner of the queue reports twenty times a second; one that is silent for so long has hung.
SILENCE_S = 1.5


class RemoteBackend:
    """Sends readings, waits for logits. What it knows of the load is a few milliseconds old."""

    greeting: Greeting
    engine_pid = None

    def __init__(
        self, settings: Settings, on_loss: Callable[[], None], on_move: Callable[[Path], Coroutine[None, None, None]]
    ) -> None:
        self._max_queue_tokens, self._max_wait_s = settings.max_queue_tokens, settings.max_wait_s
        self._on_loss, self._on_move = on_loss, on_move
        self._moving: asyncio.Task[None] | None = None
        self._load = Load(0, 0, 0.0, 0, is_up=False, trouble="not connected")
        self._heard = 0.0
        self._number = 0
        self._asked: dict[int, asyncio.Future[Answered]] = {}
        self._closing = False

    async def connect(self, path: Path) -> None:
        """Raises OSError if nobody listens there."""
        self._reader, self._writer = await asyncio.open_unix_connection(path)
        first = await messages.read(self._reader)
        if first is None:
            raise ConnectionResetError("the owner of the queue left")
        self.greeting = Greeting.parse(first[0]["greeting"])
        self._hear(first)
        self._listening = asyncio.create_task(self._listen())

    def load(self) -> Load:
        if self._closing:
            return replace(self._load, trouble="the service takes no new work")
        if time.monotonic() - self._heard > SILENCE_S:
            return replace(self._load, trouble="the owner of the queue does not report")
        return self._load

    def refuse_if_busy(self, timeout_s: float | None = None) -> None:
        self._refuse_if_closing()
        load = self.load()
        if not load.is_up:
            raise EngineRestarting("the engine failed and is being restarted; try again")
        bound_s = min(self._max_wait_s, math.inf if timeout_s is None else timeout_s)
        if load.queue_tokens > self._max_queue_tokens or load.wait_s > bound_s:
            raise Overloaded(f"new work would wait {load.wait_s:.1f} s; retry after Retry-After")

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise ShuttingDown("the service is shutting down; send the request to another replica")

    async def submit(
        self, readings: tuple[Encoding, ...], *, flow: Hashable, timeout_s: float | None, patient: bool
    ) -> Answered:
        self._refuse_if_closing()  # it may have begun to leave while this was encoded
        self._number += 1
        number = self._number
        lengths, ids = messages.ids_of(readings)
        shared = flow if isinstance(flow, str) else id(flow)  # a name means the same in every front
        head = {"number": number, "lengths": lengths, "flow": shared, "timeout_s": timeout_s, "patient": patient}
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._writer.write(messages.message(head, ids))
        try:
            return await answer
        except asyncio.CancelledError:
            self._writer.write(messages.message({"number": number}))
            raise
        finally:
            self._asked.pop(number, None)

    def retry_after_s(self) -> int:
        return max(1, math.ceil(self._load.wait_s))

    async def drain(self, timeout_s: float) -> None:
        self._closing = True
        if self._asked:
            await asyncio.wait(list(self._asked.values()), timeout=timeout_s)
        self._fail("the service shut down before this request was answered")
        self._writer.close()

    async def _listen(self) -> None:
        while received := await messages.read(self._reader):
            self._hear(received)
        if not self._closing:
            self._closing = True
            self._fail("the owner of the queue left")
            self._on_loss()

    def _hear(self, received: Message) -> None:
        head, body = received
        if "moved" in head:
            self._moving = asyncio.create_task(self._on_move(Path(head["moved"])))
            return
        if "load" in head:
            self._load, self._heard = Load(**head["load"]), time.monotonic()
            return
        answer = self._asked.get(head["number"])
        if answer is None or answer.done():
            return
        if "error" in head:
            answer.set_exception(messages.error_of(head["error"], head["message"]))
        else:
            answer.set_result(Answered(messages.logits_of(body), head["queue_s"], head["run_s"]))

    def _fail(self, reason: str) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ShuttingDown(reason))
