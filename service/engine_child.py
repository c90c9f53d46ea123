"""One engine process as the service sees it: started, asked, and gone."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from service import frames
from service.batcher import Ran
from service.engine import EngineOptions, Greeting
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
        try:
            fields = json.loads(await self._frame())
        except asyncio.IncompleteReadError:
            raise EngineUnavailable("the engine ended before it was ready; its log says why") from None
        if "error" in fields:
            raise EngineUnavailable(fields["message"])
        self.greeting = Greeting(**fields)
        self.tokens_per_s = self.greeting.tokens_per_s

    def send(self, readings: Sequence[Encoding]) -> Sent:
        self._number += 1
        tokens = sum(map(len, readings))
        sent = Sent(asyncio.get_running_loop().create_future(), time.monotonic(), tokens / self.tokens_per_s)
        self.sent[self._number] = sent
        self._writer.write(frames.request(self._number, readings))
        return sent

    async def listen(self) -> str:
        """Deliver replies until the process ends; why it did."""
        try:
            while True:
                self._deliver(await self._frame())
        except (OSError, asyncio.IncompleteReadError):
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

    async def _frame(self) -> bytes:
        (length,) = frames.LENGTH.unpack(await self._reader.readexactly(frames.LENGTH.size))
        return await self._reader.readexactly(length)

    def _deliver(self, payload: bytes) -> None:
        number, seconds, answer = frames.parse_reply(payload)
        sent = self.sent.pop(number)
        if sent.answer.done():
            return
        if isinstance(answer, str):
            sent.answer.set_exception(EngineFailed(answer))
        else:
            sent.answer.set_result(Ran(answer, seconds))
