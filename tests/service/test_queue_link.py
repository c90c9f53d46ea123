"""Test what a worker does if its information about the queue is old, wrong or absent."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from service.engine.types import EngineProfile, EngineResult, QueueLoad
from service.settings import Settings
from service.workers import queue_client
from service.workers.queue_client import QueueClient
from service.workers.queue_server import QueueServer
from tests.service.test_rpc import ClosedTransport
from tinyrm.encoding import Encoding, Truncation
from tinyrm.engines.base import cpu_info
from tinyrm.errors import EngineUnavailable, Overloaded, ShuttingDown

PATIENCE_S = 10
IDENTITY = "toy@1"
SEQUENCE = Encoding(np.arange(5, 15), Truncation())


@dataclass
class StubBackend:
    """Return the length of each item, and record the fairness keys."""

    waiting_tokens: int = 0
    keys: list[Hashable] = field(default_factory=list)
    engine_pid = None
    profile = EngineProfile(IDENTITY, cpu_info("null", "fp32"), 1.0, 1.0)

    def load(self) -> QueueLoad:
        wait_s = float(self.waiting_tokens)
        return QueueLoad(1, self.waiting_tokens, wait_s, 0, is_up=True, unhealthy_reason=None)

    def refuse_if_busy(self, timeout_s: float | None = None) -> None: ...

    async def submit(
        self, sequences: tuple[Encoding, ...], *, fairness_key: Hashable, timeout_s: float | None, wait_for_room: bool
    ) -> EngineResult:
        self.keys.append(fairness_key)
        return EngineResult(np.array([[len(s), 0] for s in sequences], dtype=np.float32), 0.0, 0.0)

    def retry_after_s(self) -> int:
        return 1

    async def drain(self, timeout_s: float) -> None: ...


@asynccontextmanager
async def served(backend: StubBackend, path: Path) -> AsyncIterator[QueueServer]:
    server = QueueServer(backend)
    await server.start(path)
    async with asyncio.timeout(PATIENCE_S):
        yield server
    await server.stop()


async def connected(path: Path, identity: str = IDENTITY) -> QueueClient:
    client = QueueClient(Settings(max_wait_s=1), on_loss=lambda: None, on_move=lambda _: asyncio.sleep(0))
    await client.connect(path, identity)
    return client


async def reported(client: QueueClient, tokens: int) -> None:
    while client.load().queue_tokens != tokens:  # noqa: ASYNC110  # a report is not an event to its readers
        await asyncio.sleep(0.01)


def test_a_result_comes_back_and_only_names_are_one_key_in_all_workers(tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = StubBackend()
        async with served(backend, tmp_path / "queue"):
            for key in ("name", "name", object(), object()):
                client = await connected(tmp_path / "queue")
                result = await client.submit((SEQUENCE,), fairness_key=key, timeout_s=None, wait_for_room=False)
                assert result.logits.tolist() == [[10, 0]]
        assert len(set(backend.keys)) == 3

    asyncio.run(scenario())


def test_a_worker_with_another_bundle_than_the_queue_refuses_to_serve_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(StubBackend(), tmp_path / "queue"):
            with pytest.raises(EngineUnavailable, match="holds toy@2, and toy@1 is served; reload the service"):
                await connected(tmp_path / "queue", "toy@2")

    asyncio.run(scenario())


def test_reports_reach_the_other_workers_when_one_is_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = StubBackend()
        async with served(backend, tmp_path / "queue") as server:
            await connected(tmp_path / "queue")
            (lost,) = server._connections
            lost._transport = ClosedTransport()  # type: ignore[assignment]
            other = await connected(tmp_path / "queue")
            backend.waiting_tokens = 7
            await reported(other, 7)

    asyncio.run(scenario())


def test_a_worker_does_not_refuse_because_of_an_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        backend = StubBackend(waiting_tokens=100)
        async with served(backend, tmp_path / "queue") as server:
            client = await connected(tmp_path / "queue")
            with pytest.raises(Overloaded):
                client.refuse_if_busy()
            assert server._reporting is not None
            server._reporting.cancel()
            monkeypatch.setattr(queue_client, "SILENCE_S", 0.0)
            client.refuse_if_busy()
            assert client.load().unhealthy_reason == "the owner of the queue does not report"

    asyncio.run(scenario())


def test_a_worker_notices_that_the_owner_of_the_queue_has_left(tmp_path: Path) -> None:
    async def scenario() -> None:
        is_lost = asyncio.Event()
        client = QueueClient(Settings(), on_loss=is_lost.set, on_move=lambda _: asyncio.sleep(0))
        async with served(StubBackend(), tmp_path / "queue") as server:
            await client.connect(tmp_path / "queue", IDENTITY)
            await server.stop()
            await is_lost.wait()
        with pytest.raises(ShuttingDown):
            client.refuse_if_busy()

    asyncio.run(scenario())


def test_workers_move_to_another_queue_before_the_old_one_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        moved: list[Path] = []

        async def move(path: Path) -> None:
            moved.append(path)
            await client.drain(0)

        client = QueueClient(Settings(), on_loss=lambda: None, on_move=move)
        async with served(StubBackend(), tmp_path / "queue") as server:
            await client.connect(tmp_path / "queue", IDENTITY)
            await server.move(tmp_path / "other", PATIENCE_S)
        assert moved == [tmp_path / "other"]

    asyncio.run(scenario())
