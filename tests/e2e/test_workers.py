"""Several front processes before one engine: to a client the same service, only wider."""

import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_process import LONG, PAIR, total, wait_until_accepted
from tests.support.processes import Process, started
from tests.support.waiting import wait_until


def processes(service: Process, what: str) -> list[psutil.Process]:
    alive = [p for p in psutil.Process(service.popen.pid).children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in alive if f"service.{what}" in " ".join(p.cmdline())]


def names(service: Process) -> set[str]:
    lines = service.get("/metrics").text.splitlines()
    return {re.split("[{ ]", line)[0] for line in lines if not line.startswith("#")}


def test_two_fronts_answer_as_one_and_count_together(bundle_folder: Path) -> None:
    with started(bundle_folder) as one, started(bundle_folder, workers=2) as two:
        assert len(processes(two, "front")) == 2
        assert len(processes(two, "engine")) == 1
        assert two.post("/v1/compare", PAIR).json() == one.post("/v1/compare", PAIR).json()
        with ThreadPoolExecutor(8) as clients:
            replies = list(clients.map(lambda _: two.post("/v1/compare", PAIR), range(60)))
        assert {reply.json()["margin"] for reply in replies} == {one.post("/v1/compare", PAIR).json()["margin"]}
        counted = 'tinyrm_requests_total{endpoint="compare",status="200"}'
        wait_until(lambda: total(two, counted) == 61)
        assert total(two, "tinyrm_preferences_total") == 61
        assert total(two, "tinyrm_engine_info") == 1
        assert names(two) - {"tinyrm_margin_sum", "tinyrm_first_position_margin_sum"} == names(one)
        assert two.stop() == 0


@pytest.mark.slow
def test_what_all_processes_take_is_one_number(bundle_folder: Path) -> None:
    def told(role: str) -> float:
        return total(two, f'tinyrm_process_resident_memory_bytes{{role="{role}"}}')

    def taken(role: str) -> float:
        return sum(process.memory_info().rss for process in processes(two, role))

    def is_told(role: str) -> bool:
        return told(role) == pytest.approx(taken(role), rel=0.1)

    with started(bundle_folder, workers=2) as two:
        wait_until(lambda: is_told("front") and is_told("engine"))
        assert told("service") == pytest.approx(psutil.Process(two.popen.pid).memory_info().rss, rel=0.1)
        spent = total(two, 'tinyrm_process_cpu_seconds_total{role="front"}')
        assert spent > 0
        first, _ = processes(two, "front")
        first.kill()
        wait_until(lambda: len(processes(two, "front")) == 2 and first not in processes(two, "front"))
        wait_until(lambda: is_told("front"))
        assert total(two, 'tinyrm_process_cpu_seconds_total{role="front"}') >= spent, "it was spent all the same"


@pytest.mark.slow
def test_refusals_and_deadlines_are_the_same(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2, max_queue_tokens=512, max_batch_tokens=512) as service:
        assert service.post("/v1/compare", {"prompt": "x"}).status_code == 422
        late = service.client.post("/v1/compare", json=LONG, headers={"X-Request-Timeout-Ms": "1"})
        assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline_exceeded")
        with ThreadPoolExecutor(60) as clients:
            replies = list(clients.map(lambda _: service.post("/v1/compare", LONG), range(300)))
        statuses = Counter(reply.status_code for reply in replies)
        assert set(statuses) == {200, 429}, statuses
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies if reply.status_code == 429)


def test_a_front_that_dies_is_replaced(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2) as service:
        first, _ = processes(service, "front")
        first.kill()
        wait_until(lambda: len(processes(service, "front")) == 2 and first not in processes(service, "front"))
        wait_until(lambda: service.get("/readyz").status_code == 200)
        assert service.post("/v1/compare", PAIR).status_code == 200


@pytest.mark.slow
def test_the_engines_death_is_seen_by_all_fronts(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2) as service:
        (engine,) = processes(service, "engine")
        engine.send_signal(signal.SIGSTOP)
        wait_until(lambda: service.get("/readyz").status_code == 503)
        engine.kill()
        wait_until(lambda: [service.get("/readyz").status_code for _ in range(8)] == [200] * 8)
        assert service.post("/v1/compare", PAIR).status_code == 200


@pytest.mark.slow
def test_what_was_accepted_is_answered_before_all_leave(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2, max_batch_tokens=512) as service, ThreadPoolExecutor(31) as clients:
        batch = clients.submit(service.post, "/v1/compare/batch", {"items": [LONG] * 80})
        singles = [clients.submit(service.post, "/v1/compare", LONG) for _ in range(30)]
        wait_until_accepted(service, 110)
        everybody = psutil.Process(service.popen.pid).children()
        assert service.stop() == 0
        assert not any("error" in result for result in batch.result().json()["results"])
        assert {single.result().status_code for single in singles} == {200}
    assert not any(process.is_running() for process in everybody)


@pytest.mark.slow
def test_nothing_is_left_of_a_service_that_was_killed(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2) as service:
        everybody = psutil.Process(service.popen.pid).children()
        assert len(everybody) == 3
        service.popen.kill()
        wait_until(lambda: not any(process.is_running() for process in everybody))
