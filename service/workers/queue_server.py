"""The owner of queue and engine, for front processes that ask it over a Unix socket."""

import asyncio
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from service.engine import messages
from service.engine.backend import LocalBackend
from tinyrm.errors import TinyRMError

log = structlog.get_logger("tinyrm")

# How old a front's knowledge of the load may be. What it decides on it is decided here once more.
REPORT_INTERVAL_S = 0.05


def _forget(asked: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    asked.pop(number, None)


class Hub:
    """Serves one backend to any number of fronts. Work of a front that has gone is dropped."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._fronts: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._reporting: asyncio.Task[None] | None = None

    @property
    def engine_pid(self) -> int | None:
        return self._backend.engine_pid

    async def start(self, path: Path) -> None:
        self._server = await asyncio.start_unix_server(self._talk, path)
        self._reporting = asyncio.create_task(self._keep_reporting())

    async def stop(self) -> None:
        """Hang up, and end queue and engine."""
        if self._server and self._reporting:
            self._reporting.cancel()
            self._server.close()
            for front in self._fronts:
                front.close()
        await self._backend.drain(0)

    async def move(self, path: Path, timeout_s: float) -> None:
        """Send every front to another hub; returns when all have left, each after its last answer, or in time."""
        for front in self._fronts:
            front.write(messages.message({"moved": str(path)}))
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._fronts:  # noqa: ASYNC110  # they leave one by one, and rarely
                    await asyncio.sleep(REPORT_INTERVAL_S)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked: dict[int, asyncio.Task[None]] = {}
        writer.write(messages.message({"greeting": asdict(self._backend.greeting), "load": self._load()}))
        self._fronts.add(writer)
        try:
            while received := await messages.read(reader):
                head, body = received
                number = head["number"]
                if "lengths" in head:
                    task = asyncio.create_task(self._answer(head, body, writer))
                    asked[number] = task
                    task.add_done_callback(partial(_forget, asked, number))
                elif number in asked:
                    asked[number].cancel()
        finally:
            self._fronts.discard(writer)
            for task in list(asked.values()):
                task.cancel()
            writer.close()

    async def _answer(self, head: dict[str, Any], body: bytes, writer: asyncio.StreamWriter) -> None:
        number, flow = head["number"], head["flow"]
        try:
            answered = await self._backend.submit(
                messages.readings_of(head["lengths"], body),
                flow=flow if isinstance(flow, str) else (id(writer), flow),
                timeout_s=head["timeout_s"],
                patient=head["patient"],
            )
        except TinyRMError as error:
            reply = messages.message({"number": number, "error": error.type, "message": str(error)})
        else:
            times = {"queue_s": answered.queue_s, "run_s": answered.run_s}
            reply = messages.message({"number": number, **times}, answered.logits.tobytes())
        if not writer.is_closing():
            writer.write(reply)

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            report = messages.message({"load": self._load()})
            for front in self._fronts:
                with suppress(OSError):
                    front.write(report)

    def _load(self) -> dict[str, Any]:
        return asdict(self._backend.load())
