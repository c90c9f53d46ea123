"""One engine process as the service sees it: started, asked, and gone."""

import asyncio
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from service.engine import messages
from service.engine.batcher import Ran
from service.engine.worker import EngineOptions, Greeting
from tinyrm.encoding import Encoding
from tinyrm.errors import EngineFailed, EngineUnavailable


@dataclass(slots=True)
class Sent:
    """A run that is not answered yet."""

    answer: "asyncio.Future[Ran]"
    at: float
    expected_s: float


class EngineChild:
    """A running engine. Whatever ends it fails the runs it had."""

    def __init__(
        self, popen: "subprocess.Popen[bytes]", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.started = time.monotonic()
        self.greeting: Greeting
        self.sent: dict[int, Sent] = {}
        self.tokens_per_s = 0.0
        self.pid = popen.pid
        self._popen, self._reader, self._writer = popen, reader, writer
        self._number = 0
        self._reason = ""

    @classmethod
    async def start(cls, options: EngineOptions, timeout_s: float) -> Self:
        """Start one and wait until it has run. Raises EngineUnavailable with the engine's own reason, TimeoutError."""
        ours, theirs = socket.socketpair()
        with theirs:
            # Starting a process blocks for milliseconds, and does not depend on the loop's way of watching children.
            popen = subprocess.Popen(options.command(theirs.fileno()), pass_fds=[theirs.fileno()])  # noqa: ASYNC220, S603
        child = cls(popen, *await asyncio.open_connection(sock=ours))
        try:
            async with asyncio.timeout(timeout_s):
                await child._meet()
        except BaseException:
            child.end("it did not start")
            raise
        return child

    async def _meet(self) -> None:
        first = await messages.read(self._reader)
        if first is None:
            raise EngineUnavailable("the engine ended before it was ready; its log says why")
        fields, _ = first
        if "error" in fields:
            raise EngineUnavailable(fields["message"])
        self.greeting = Greeting.parse(fields)
        self.tokens_per_s = self.greeting.tokens_per_s

    def send(self, readings: Sequence[Encoding]) -> Sent:
        self._number += 1
        lengths, ids = messages.ids_of(readings)
        sent = Sent(asyncio.get_running_loop().create_future(), time.monotonic(), sum(lengths) / self.tokens_per_s)
        self.sent[self._number] = sent
        self._writer.write(messages.message({"number": self._number, "lengths": lengths}, ids))
        return sent

    async def listen(self) -> str:
        """Deliver replies until the process ends; why it did."""
        while received := await messages.read(self._reader):
            self._deliver(*received)
        code = await asyncio.to_thread(self.leave)
        return self._reason or f"its process ended with code {code}"

    def end(self, reason: str) -> None:
        """Kill it. Runs it had fail with EngineFailed."""
        self._reason = self._reason or reason
        self._popen.kill()
        self._writer.close()
        for sent in self.sent.values():
            if not sent.answer.done():
                sent.answer.set_exception(EngineFailed(f"the engine failed: {self._reason}; try again"))
                sent.answer.exception()  # whoever waited may be gone, which is no error
        self.sent.clear()

    def leave(self) -> int:
        """Wait for the end of a process that has been told to end, or make it; its exit code. Blocks."""
        try:
            return self._popen.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()

    def _deliver(self, head: dict[str, Any], body: bytes) -> None:
        sent = self.sent.pop(head["number"])
        if sent.answer.done():
            return
        if "error" in head:
            sent.answer.set_exception(EngineFailed(head["error"]))
        else:
            sent.answer.set_result(Ran(messages.logits_of(body), head["seconds"]))
