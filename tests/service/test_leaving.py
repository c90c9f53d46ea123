"""Test that requests at the listener or before the queue get a reply when the service stops."""

import asyncio
import socket
import threading
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from service.engine.backend import LocalBackend
from service.engine.rpc import Connection, Message
from service.engine.types import BatchOutput, EngineProfile, QueueLoad
from service.http.server import Server
from service.scoring.pipeline import NO_DEADLINE, CompareResult, Question
from service.scoring.text_encoder import SHORT_CHARACTERS
from service.settings import Settings
from service.workers.queue_client import QueueClient
from tests.service.conftest import PAIR, Served
from tests.support.waiting import PATIENCE_S
from tinyrm.bundle import Bundle
from tinyrm.engines.base import cpu_info
from tinyrm.errors import ShuttingDown
from tinyrm.manifest import TOKENIZER_FILE

# Encoded in a thread, as everything is that is not short.
LONG = Question("x" * (SHORT_CHARACTERS + 1))


def ask(served: Served, question: Question = LONG) -> "Future[CompareResult]":
    """Submit an item of an accepted list."""

    async def compare() -> CompareResult:
        return await served.pipeline.compare(question, "a", "b", wait_for_room=True)

    return portal(served).start_task_soon(compare)


def portal(served: Served) -> Any:
    assert served.client.portal is not None
    return served.client.portal


def test_a_request_that_waits_to_be_encoded_gets_shutting_down(fresh: Served) -> None:
    lane = fresh.pipeline.texts.queue._short
    busy, free = threading.Semaphore(0), threading.Event()
    for _ in range(lane._size):
        portal(fresh).start_task_soon(lane.run, lambda: (busy.release(), free.wait(30)), 1, None, NO_DEADLINE)
        assert busy.acquire(timeout=30)
    waiting = ask(fresh)
    portal(fresh).call(fresh.pipeline.drain, 0.0)
    free.set()
    with pytest.raises(ShuttingDown):
        waiting.result(30)


def test_a_request_that_is_encoded_after_the_shutdown_gets_shutting_down(fresh: Served) -> None:
    portal(fresh).call(fresh.pipeline.drain, 0.0)
    with pytest.raises(ShuttingDown):
        ask(fresh).result(30)


@pytest.mark.parametrize("question", [Question("Short?"), LONG], ids=["short", "long"])
def test_nothing_is_encoded_for_an_engine_that_reads_no_more(
    fresh: Served, monkeypatch: pytest.MonkeyPatch, question: Question
) -> None:
    """Encode nothing: with thousands of items left of a list, its reply would come too late."""
    portal(fresh).call(fresh.pipeline.backend.drain, 0.0)
    monkeypatch.setattr(fresh.pipeline.texts, "_tokenize", None)
    with pytest.raises(ShuttingDown):
        ask(fresh, question).result(30)


@pytest.mark.parametrize("is_accepted", [False, True])
def test_a_connected_client_gets_a_reply_at_shutdown(is_accepted: bool) -> None:
    """Close the listener while the connection is not accepted yet, or its request is not read yet."""
    assert b"heard" in asyncio.run(answer_to_the_last_one(is_accepted))


async def answer_to_the_last_one(is_accepted: bool) -> bytes:
    config = uvicorn.Config(PlainTextResponse("heard"), port=0, lifespan="off", log_config=None)
    server = Server(config, drain=lambda: asyncio.sleep(0), cut=lambda: asyncio.sleep(0))
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    with socket.create_connection(server.servers[0].sockets[0].getsockname()) as last:
        if is_accepted:
            await asyncio.sleep(0.05)
            assert server.server_state.connections
        last.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.shutdown()
        return last.recv(1000)


def test_a_worker_that_stops_sends_nothing_more_to_the_queue(bundle_folder: Path, tmp_path: Path) -> None:
    """Send nothing: it would wait for a reply that cannot come, and so would the whole service."""
    with pytest.raises(ShuttingDown):
        asyncio.run(asyncio.wait_for(asked_after_the_drain(Bundle.open(bundle_folder), tmp_path / "queue"), PATIENCE_S))


async def asked_after_the_drain(bundle: Bundle, path: Path) -> None:
    load = QueueLoad(0, 0, 0.0, 0, is_up=True, unhealthy_reason=None)
    profile = EngineProfile(bundle.manifest.identity, cpu_info("null", "fp32"), 1.0, 1.0)

    async def connect(*_: object) -> Message:
        head = {"profile": asdict(profile), "load": asdict(load), "manifest": bundle.manifest.to_json()}
        return head, bundle.path(TOKENIZER_FILE).read_bytes()

    async with await asyncio.get_running_loop().create_unix_server(lambda: Connection(handle=connect), str(path)):
        backend = QueueClient(Settings(), on_loss=lambda: None, on_move=lambda _: asyncio.sleep(0))
        await backend.connect(path, bundle.folder)
        await backend.drain(0)
        await backend.submit((), fairness_key="a", timeout_s=None, wait_for_room=False)


def test_a_request_that_the_server_cuts_gets_an_error_with_its_request_id(
    fresh: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancel the request's task, as the server does when its time to stop has passed."""

    async def cut(*_: object, **__: object) -> None:
        task = asyncio.current_task()
        assert task
        task.cancel()
        await asyncio.sleep(PATIENCE_S)

    monkeypatch.setattr(fresh.pipeline, "compare", cut)
    reply = fresh.client.post("/v1/compare", json=PAIR, headers={"X-Request-Id": "mine"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "shutting_down")
    assert (reply.headers["X-Request-Id"], reply.headers["Connection"]) == ("mine", "close")


def test_a_cut_fails_what_was_accepted(fresh: Served) -> None:
    runs = threading.Event()

    async def run(_: object) -> BatchOutput:
        runs.set()
        await asyncio.sleep(PATIENCE_S)
        raise AssertionError

    async def cut_soon() -> None:
        await asyncio.to_thread(runs.wait, PATIENCE_S)
        await fresh.state.cut()

    backend = fresh.pipeline.backend
    assert isinstance(backend, LocalBackend)
    backend.batcher.run_engine = run
    cutting = portal(fresh).start_task_soon(cut_soon)
    reply = fresh.client.post("/v1/compare", json=PAIR)
    cutting.result(PATIENCE_S)
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "shutting_down")
    assert reply.headers["X-Request-Id"]
