"""Test what a worker does if its information about the queue is old, wrong or absent."""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from service.engine.rpc import Connection, Message
from service.engine.types import EngineProfile, EngineResult, QueueLoad
from service.settings import Settings
from service.workers import queue_client, queue_server
from service.workers.queue_client import QueueClient
from service.workers.queue_server import QueueServer
from tests.service.test_rpc import ClosedTransport
from tinyrm.bundle import Bundle
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
        return QueueLoad(1, self.waiting_tokens, wait_s, 0, is_up=True, unhealthy_reason=None, next_wait_s=wait_s)

    def refuse_if_busy(self, timeout_s: float | None = None, fairness_key: Hashable = None) -> None: ...

    def refuse_if_closed(self) -> None: ...

    async def submit(
        self, sequences: tuple[Encoding, ...], *, fairness_key: Hashable, timeout_s: float | None, wait_for_room: bool
    ) -> EngineResult:
        self.keys.append(fairness_key)
        return EngineResult(np.array([[len(s), 0] for s in sequences], dtype=np.float32), 0.0, 0.0)

    def retry_after_s(self) -> int:
        return 1

    async def drain(self, timeout_s: float) -> None: ...


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    opened = Bundle.open(bundle_folder)
    return replace(opened, manifest=opened.manifest.model_copy(update={"name": "toy", "revision": "1"}))


@asynccontextmanager
async def served(
    bundle: Bundle, backend: StubBackend, path: Path, on_hung: Callable[[int], None] = lambda _: None
) -> AsyncIterator[QueueServer]:
    server = QueueServer(bundle, backend, on_hung=on_hung)
    await server.start(path)
    async with asyncio.timeout(PATIENCE_S):
        yield server
    await server.stop()


async def connected(path: Path) -> QueueClient:
    client = QueueClient(Settings(max_wait_s=1), on_loss=lambda: None, on_move=lambda _: asyncio.sleep(0))
    await client.connect(path, Path("models/nowhere"))
    return client


async def reported(client: QueueClient, tokens: int) -> None:
    while client.load().queue_tokens != tokens:  # noqa: ASYNC110  # a report is not an event to its readers
        await asyncio.sleep(0.01)


def test_a_result_comes_back_and_only_names_are_one_key_in_all_workers(bundle: Bundle, tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = StubBackend()
        async with served(bundle, backend, tmp_path / "queue"):
            for key in ("name", "name", object(), object()):
                client = await connected(tmp_path / "queue")
                result = await client.submit((SEQUENCE,), fairness_key=key, timeout_s=None, wait_for_room=False)
                assert result.logits.tolist() == [[10, 0]]
        assert len(set(backend.keys)) == 3

    asyncio.run(scenario())


def test_a_worker_takes_its_bundle_from_the_queue_and_not_from_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(bundle, StubBackend(), tmp_path / "queue"):
            client = await connected(tmp_path / "queue")
            assert client.bundle.manifest == bundle.manifest
            assert client.bundle.encoder().label_ids == bundle.encoder().label_ids

    asyncio.run(scenario())


def test_a_worker_refuses_a_queue_whose_engine_runs_another_bundle(bundle: Bundle, tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = StubBackend()
        backend.profile = replace(backend.profile, identity="toy@2")
        async with served(bundle, backend, tmp_path / "queue"):
            with pytest.raises(EngineUnavailable, match="the engine runs toy@2, and the queue serves toy@1"):
                await connected(tmp_path / "queue")

    asyncio.run(scenario())


def test_the_path_of_a_queue_may_be_longer_than_the_kernel_allows(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 50)
    folder.mkdir()

    async def scenario() -> None:
        async with served(bundle, StubBackend(), folder / "queue"):
            client = await connected(folder / "queue")
            assert client.profile.identity == IDENTITY

    asyncio.run(scenario())


@pytest.mark.parametrize("replies", [True, False])
def test_a_worker_that_does_not_reply_has_hung(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replies: bool
) -> None:
    monkeypatch.setattr(queue_server, "PING_INTERVAL_S", 0.01)
    hung: list[int] = []
    pings = 0

    async def never(*_: object) -> Message:
        await asyncio.sleep(PATIENCE_S)
        return {}, b""

    async def scenario() -> None:
        enough = asyncio.Event()

        def reply(*_: object) -> Message:
            nonlocal pings
            pings += 1
            if pings > queue_server.MAX_MISSED_PINGS:
                enough.set()
            return {}, b""

        def on_hung(pid: int) -> None:
            hung.append(pid)
            enough.set()

        async with served(bundle, StubBackend(), tmp_path / "queue", on_hung):
            worker = Connection(handle=reply if replies else never)
            await asyncio.get_running_loop().create_unix_connection(lambda: worker, str(tmp_path / "queue"))
            await worker.call({"connect": 4711})
            await enough.wait()

    asyncio.run(scenario())
    assert hung == ([] if replies else [4711])


@pytest.mark.parametrize("has_moved", [False, True])
def test_only_the_loss_of_a_queue_that_is_served_ends_the_worker(
    bundle: Bundle, tmp_path: Path, has_moved: bool
) -> None:
    """Stop an old queue before the requests on it have ended: they fail, and the worker goes on with the new one."""

    async def scenario() -> None:
        losses: list[bool] = []
        moved = asyncio.Event()

        async def move(_: Path) -> None:
            moved.set()

        client = QueueClient(Settings(), on_loss=lambda: losses.append(True), on_move=move)
        async with served(bundle, StubBackend(), tmp_path / "queue") as server:
            await client.connect(tmp_path / "queue", tmp_path)
            if has_moved:
                await server.move(tmp_path / "other", 0.01)
                await moved.wait()
            await server.stop()
            await client._connection.lost
            await asyncio.sleep(0)
            assert losses == ([] if has_moved else [True])
            with pytest.raises(ShuttingDown):
                client.refuse_if_busy()

    asyncio.run(scenario())


def test_a_worker_that_connects_to_an_old_queue_is_moved(bundle: Bundle, tmp_path: Path) -> None:
    async def scenario() -> None:
        moved: asyncio.Queue[Path] = asyncio.Queue()
        client = QueueClient(Settings(), on_loss=lambda: None, on_move=moved.put)
        async with served(bundle, StubBackend(), tmp_path / "queue") as server:
            await server.move(tmp_path / "other", PATIENCE_S)
            await client.connect(tmp_path / "queue", tmp_path)
            assert await moved.get() == tmp_path / "other"

    asyncio.run(scenario())


def test_reports_reach_the_other_workers_when_one_is_lost(bundle: Bundle, tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = StubBackend()
        async with served(bundle, backend, tmp_path / "queue") as server:
            await connected(tmp_path / "queue")
            (lost,) = server._connections
            lost._transport = ClosedTransport()  # type: ignore[assignment]
            other = await connected(tmp_path / "queue")
            backend.waiting_tokens = 7
            await reported(other, 7)

    asyncio.run(scenario())


def test_a_worker_does_not_refuse_because_of_an_old_report(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        backend = StubBackend(waiting_tokens=100)
        async with served(bundle, backend, tmp_path / "queue") as server:
            client = await connected(tmp_path / "queue")
            with pytest.raises(Overloaded):
                client.refuse_if_busy()
            server._tasks[0].cancel()
            monkeypatch.setattr(queue_client, "SILENCE_S", 0.0)
            client.refuse_if_busy()
            assert client.load().unhealthy_reason == "the owner of the queue does not report"

    asyncio.run(scenario())


def test_a_worker_notices_that_the_owner_of_the_queue_has_left(bundle: Bundle, tmp_path: Path) -> None:
    async def scenario() -> None:
        is_lost = asyncio.Event()
        client = QueueClient(Settings(), on_loss=is_lost.set, on_move=lambda _: asyncio.sleep(0))
        async with served(bundle, StubBackend(), tmp_path / "queue") as server:
            await client.connect(tmp_path / "queue", tmp_path)
            await server.stop()
            await is_lost.wait()
        with pytest.raises(ShuttingDown):
            client.refuse_if_busy()

    asyncio.run(scenario())


def test_workers_move_to_another_queue_before_the_old_one_ends(bundle: Bundle, tmp_path: Path) -> None:
    async def scenario() -> None:
        moved: list[Path] = []

        async def move(path: Path) -> None:
            moved.append(path)
            await client.drain(0)

        client = QueueClient(Settings(), on_loss=lambda: None, on_move=move)
        async with served(bundle, StubBackend(), tmp_path / "queue") as server:
            await client.connect(tmp_path / "queue", tmp_path)
            await server.move(tmp_path / "other", PATIENCE_S)
        assert moved == [tmp_path / "other"]

    asyncio.run(scenario())


def test_a_long_list_in_the_queue_makes_nobody_else_wait(bundle: Bundle, tmp_path: Path) -> None:
    """All the work takes minutes; a new client's turn comes at once."""

    async def scenario() -> None:
        backend = StubBackend(waiting_tokens=500)
        backend.load = lambda: QueueLoad(1, 500, 500.0, 0, True, None, next_wait_s=0.1)  # type: ignore[method-assign]
        async with served(bundle, backend, tmp_path / "queue"):
            client = await connected(tmp_path / "queue")
            client.refuse_if_busy(timeout_s=0.5)
            assert client.retry_after_s() == 1, "no longer than the wait that is allowed"
            with pytest.raises(Overloaded):
                client.refuse_if_busy(timeout_s=0.05)

    asyncio.run(scenario())


def test_a_full_queue_refuses_in_the_worker_already(bundle: Bundle, tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = StubBackend()
        backend.load = lambda: QueueLoad(1, 500, 0.1, 0, True, None, is_full=True)  # type: ignore[method-assign]
        async with served(bundle, backend, tmp_path / "queue"):
            client = await connected(tmp_path / "queue")
            with pytest.raises(Overloaded, match="500 tokens are waiting"):
                client.refuse_if_busy()

    asyncio.run(scenario())
