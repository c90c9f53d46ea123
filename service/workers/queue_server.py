"""A queue and its engine, served to worker processes over a Unix socket."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.engine.backend import Backend
from service.engine.rpc import Connection, Message, load_sequences
from service.engine.supervisor import run_in_background

# Workers refuse work by these reports; the queue itself checks accepted work again.
REPORT_INTERVAL_S = 0.05


class QueueServer:
    """Serves one backend to any number of workers. The work of a worker that disconnects is dropped."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._reporting: asyncio.Task[None] | None = None

    @property
    def engine_pid(self) -> int | None:
        return self._backend.engine_pid

    async def start(self, path: Path) -> None:
        """Listen on a Unix socket, and report the load to every worker at intervals."""

        def accept() -> Connection:
            connection = Connection(handle=self._handle, on_loss=lambda: self._connections.discard(connection))
            self._connections.add(connection)
            return connection

        async def report_load() -> None:
            while True:
                await asyncio.sleep(REPORT_INTERVAL_S)
                load = asdict(self._backend.load())
                for connection in self._connections:
                    connection.notify({"load": load})

        self._server = await asyncio.get_running_loop().create_unix_server(accept, str(path))
        self._reporting = run_in_background(report_load(), "load reports")

    async def stop(self) -> None:
        """Close all connections, and stop the queue and the engine."""
        if self._server and self._reporting:
            self._reporting.cancel()
            self._server.close()
            for connection in self._connections:
                connection.close()
        await self._backend.drain(0)

    async def move(self, path: Path, timeout_s: float) -> None:
        """Make every worker move to another queue. Return when all have disconnected after their last reply.

        path: Unix socket of the other queue.
        timeout_s: the longest wait.
        """
        left = [connection.lost for connection in self._connections]
        for connection in self._connections:
            connection.notify({"moved": str(path)})
        if left:
            await asyncio.wait(left, timeout=timeout_s)

    async def _handle(self, connection: Connection, head: dict[str, Any], body: bytes) -> Message:
        if "connect" in head:
            return {"profile": asdict(self._backend.profile), "load": asdict(self._backend.load())}, b""
        key = head["fairness_key"]
        result = await self._backend.submit(
            load_sequences(head["lengths"], body),
            fairness_key=key if isinstance(key, str) else (id(connection), key),
            timeout_s=head["timeout_s"],
            wait_for_room=head["wait_for_room"],
        )
        return {"queue_s": result.queue_s, "run_s": result.run_s}, result.logits.tobytes()
