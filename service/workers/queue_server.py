"""A queue and its engine, served to worker processes over a Unix socket."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.engine.backend import Backend
from service.engine.rpc import Connection, Message, load_sequences
from service.engine.supervisor import run_in_background
from service.workers.runtime import socket_path
from tinyrm.bundle import Bundle
from tinyrm.errors import TinyRMError
from tinyrm.manifest import TOKENIZER_FILE

# Workers refuse work by these reports; the queue itself checks accepted work again.
REPORT_INTERVAL_S = 0.05
# A worker must reply to a call at this interval; one that misses so many has hung. Counted instead of timed: after a
# pause of the whole machine, every worker may reply first.
PING_INTERVAL_S = 1.0
MAX_MISSED_PINGS = 10


class QueueServer:
    """Serves one bundle to any number of workers. The work of a worker that disconnects is dropped.

    on_connect: called with the process id of each worker that connects.
    on_hung: called with the process id of a worker that does not reply any more.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        on_connect: Callable[[int], None] = lambda _: None,
        on_hung: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.identity = bundle.manifest.identity
        self._manifest = bundle.manifest.to_json()
        self._tokenizer = bundle.path(TOKENIZER_FILE).read_bytes()
        self._backend, self._on_connect, self._on_hung = backend, on_connect, on_hung
        self._workers: dict[Connection, int] = {}  # process ids, once they have connected
        self._connections: set[Connection] = set()
        self._pings: dict[Connection, asyncio.Task[Message]] = {}
        self._missed: dict[Connection, int] = {}
        self._moved_to: Path | None = None
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def engine_pid(self) -> int | None:
        return self._backend.engine_pid

    async def start(self, path: Path) -> None:
        """Listen on a Unix socket, report the load to every worker at intervals, and watch the workers."""

        def accept() -> Connection:
            connection = Connection(handle=self._handle, on_loss=lambda: self._forget(connection))
            self._connections.add(connection)
            return connection

        listener = socket.socket(socket.AF_UNIX)
        with socket_path(path) as short:
            listener.bind(short)
        self._server = await asyncio.get_running_loop().create_unix_server(accept, sock=listener)
        self._tasks = [
            run_in_background(self._report_load(), "load reports"),
            run_in_background(self._watch_workers(), "pings"),
        ]

    async def stop(self) -> None:
        """Close all connections, and stop the queue and the engine."""
        for task in self._tasks:
            task.cancel()
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        await self._backend.drain(0)

    async def move(self, path: Path, timeout_s: float) -> None:
        """Make every worker move to another queue. Return when all have disconnected after their last reply.

        path: Unix socket of the other queue.
        timeout_s: the longest wait.
        """
        self._moved_to = path  # also for a worker that connects later
        left = [connection.lost for connection in self._connections]
        for connection in self._workers:
            connection.notify({"moved": str(path)})
        if left:
            await asyncio.wait(left, timeout=timeout_s)

    async def _report_load(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            load = asdict(self._backend.load())
            for connection in list(self._connections):
                connection.notify({"load": load})

    async def _watch_workers(self) -> None:
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            for connection, pid in list(self._workers.items()):
                if (ping := self._pings.get(connection)) and not ping.done():
                    self._missed[connection] += 1
                    if self._missed[connection] == MAX_MISSED_PINGS:
                        self._on_hung(pid)
                else:
                    self._missed[connection] = 0
                    self._pings[connection] = asyncio.ensure_future(self._ping(connection))

    async def _ping(self, connection: Connection) -> Message:
        try:
            return await connection.call({"ping": True})
        except TinyRMError:  # it has disconnected, or refused the call: it does not hang
            return {}, b""

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._workers.pop(connection, None)
        self._missed.pop(connection, None)
        if ping := self._pings.pop(connection, None):
            ping.cancel()

    async def _handle(self, connection: Connection, head: dict[str, Any], body: bytes) -> Message:
        if "connect" in head:
            self._workers[connection] = head["connect"]
            self._on_connect(head["connect"])
            if self._moved_to:
                asyncio.get_running_loop().call_soon(connection.notify, {"moved": str(self._moved_to)})
            load = asdict(self._backend.load())
            return {"profile": asdict(self._backend.profile), "load": load, "manifest": self._manifest}, self._tokenizer
        key = head["fairness_key"]
        result = await self._backend.submit(
            load_sequences(head["lengths"], body),
            fairness_key=key if isinstance(key, str) else (id(connection), key),
            timeout_s=head["timeout_s"],
            wait_for_room=head["wait_for_room"],
        )
        return {"queue_s": result.queue_s, "run_s": result.run_s}, result.logits.tobytes()
