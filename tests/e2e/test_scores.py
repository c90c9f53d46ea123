"""Test single responses in a real service with several workers: nothing that was accepted is lost."""

import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.test_process import total
from tests.e2e.test_workers import ENGINE, is_ready, processes
from tests.support.processes import PATIENCE_S, started
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

COUNT = 60
BODIES = [{"prompt": "What is the answer? " * 100, "response": f"It is {n}."} for n in range(COUNT)]


def test_a_lost_engine_and_a_shutdown_lose_no_response_that_was_accepted(response_bundle_folder: Path) -> None:
    def ask_all() -> tuple[psutil.Process, list["Future[httpx.Response]"]]:
        """Hold the engine, and queue a request for each body: all but those of the run that it is held in."""
        (engine,) = processes(service, ENGINE)
        engine.send_signal(signal.SIGSTOP)
        requests = [clients.submit(service.post, "/v1/score", body) for body in BODIES]
        wait_until(lambda: total(service, "tinyrm_queue_items") >= 0.9 * COUNT)
        return engine, requests

    with (
        started(response_bundle_folder, workers=2, max_batch_tokens=512, max_wait_s=3600) as service,
        ThreadPoolExecutor(COUNT) as clients,
    ):
        expected = [service.post("/v1/score", body).json()["results"][0]["raw"] for body in BODIES]
        engine, requests = ask_all()
        engine.kill()
        replies = [request.result() for request in requests]
        failed = [reply.json()["error"]["type"] for reply in replies if reply.status_code != 200]
        assert set(failed) <= {"engine_failed"}
        assert len(failed) <= 0.1 * COUNT, "what waited is answered by the next engine"
        raws = [reply.json()["results"][0]["raw"] if reply.status_code == 200 else None for reply in replies]
        assert all(raw in (None, before) for raw, before in zip(raws, expected, strict=True))
        wait_until(lambda: is_ready(service))
        engine, requests = ask_all()
        service.popen.send_signal(signal.SIGTERM)
        engine.send_signal(signal.SIGCONT)
        assert {request.result().status_code for request in requests} == {200}
        assert service.popen.wait(PATIENCE_S) == 0
