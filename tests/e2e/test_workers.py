"""Test several worker processes in front of one engine: clients see the same service."""

import re
import shutil
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.test_process import LONG, PAIR, total, wait_until_accepted
from tests.support.processes import Process, started
from tests.support.waiting import wait_until
from tinyrm.bundle import Bundle, write_bundle

# Of several processes, histograms of values that may be negative have no sum.
SUMS_OF_NEGATIVES = {"tinyrm_margin_sum", "tinyrm_first_position_margin_sum", "tinyrm_score_sum"}
WORKER, ENGINE = "workers.worker", "engine.worker"
# Metrics call the worker processes by an older name.
MODULES = {"front": WORKER, "engine": ENGINE}


def processes(service: Process, module: str) -> list[psutil.Process]:
    """Return the children that run this module; not one that ends meanwhile."""
    found = []
    for child in psutil.Process(service.popen.pid).children():
        with suppress(psutil.NoSuchProcess):  # or, as its subclass, ZombieProcess
            if child.status() != psutil.STATUS_ZOMBIE and f"service.{module}" in " ".join(child.cmdline()):
                found.append(child)
    return found


def names(service: Process) -> set[str]:
    lines = service.get("/metrics").text.splitlines()
    return {re.split("[{ ]", line)[0] for line in lines if not line.startswith("#")}


@pytest.mark.slow
def test_two_workers_give_the_results_of_one_and_share_their_counts(bundle_folder: Path) -> None:
    with started(bundle_folder) as one, started(bundle_folder, workers=2) as two:
        assert len(processes(two, WORKER)) == 2
        assert len(processes(two, ENGINE)) == 1
        assert two.post("/v1/compare", PAIR).json() == one.post("/v1/compare", PAIR).json()
        with ThreadPoolExecutor(8) as clients:
            replies = list(clients.map(lambda _: two.post("/v1/compare", PAIR), range(60)))
        assert {reply.json()["margin"] for reply in replies} == {one.post("/v1/compare", PAIR).json()["margin"]}
        counted = 'tinyrm_requests_total{endpoint="compare",status="200"}'
        wait_until(lambda: total(two, counted) == 61)
        assert total(two, "tinyrm_preferences_total") == 61
        assert total(two, "tinyrm_engine_info") == 1
        assert names(two) - SUMS_OF_NEGATIVES == names(one)
        assert two.stop() == 0


@pytest.mark.slow
def test_metrics_cover_the_memory_of_all_processes(bundle_folder: Path) -> None:
    def told(role: str) -> float:
        return total(two, f'tinyrm_process_resident_memory_bytes{{role="{role}"}}')

    def taken(role: str) -> float:
        return sum(process.memory_info().rss for process in processes(two, MODULES[role]))

    def is_told(role: str) -> bool:
        return told(role) == pytest.approx(taken(role), rel=0.1)

    with started(bundle_folder, workers=2) as two:
        wait_until(lambda: is_told("front") and is_told("engine"))
        for role, module in (("front", WORKER), ("engine", ENGINE)):
            shared = sum(process.memory_full_info().pss for process in processes(two, module))
            name = f'tinyrm_process_proportional_memory_bytes{{role="{role}"}}'
            assert total(two, name) == pytest.approx(shared, rel=0.1)
        assert told("service") == pytest.approx(psutil.Process(two.popen.pid).memory_info().rss, rel=0.1)
        spent = total(two, 'tinyrm_process_cpu_seconds_total{role="front"}')
        assert spent > 0
        first, _ = processes(two, WORKER)
        first.kill()
        wait_until(lambda: len(processes(two, WORKER)) == 2 and first not in processes(two, WORKER))
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


def test_a_killed_worker_is_replaced(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2) as service:
        first, _ = processes(service, WORKER)
        first.kill()
        wait_until(lambda: len(processes(service, WORKER)) == 2 and first not in processes(service, WORKER))
        wait_until(lambda: service.get("/readyz").status_code == 200)
        assert service.post("/v1/compare", PAIR).status_code == 200


@pytest.mark.slow
def test_a_new_worker_and_a_new_engine_serve_the_revision_that_the_service_was_started_with(
    bundle_folder: Path, tmp_path: Path
) -> None:
    """Overwrite the files in the folder with those of another revision, without a reload of the service."""
    folder = tmp_path / "served"
    shutil.copytree(bundle_folder, folder)
    manifest = Bundle.open(folder).manifest
    fields = manifest.model_dump(exclude={"files", "revision"}) | {"temperature": 4 * manifest.temperature}
    write_bundle(tmp_path / "other", {name: folder / name for name in manifest.files}, fields)
    with started(folder, workers=2) as service:
        before = service.post("/v1/compare", PAIR).json()
        for path in (tmp_path / "other").iterdir():
            shutil.copyfile(path, folder / path.name)
        worker, other = processes(service, WORKER)
        (engine,) = processes(service, ENGINE)
        worker.kill()
        engine.kill()
        wait_until(lambda: len(processes(service, WORKER)) == 2 and worker not in processes(service, WORKER))
        other.kill()  # so that the new one replies
        wait_until(lambda: is_ready(service))
        replies = [service.post("/v1/compare", PAIR).json() for _ in range(20)]
        assert {(reply["model"], reply["margin"]) for reply in replies} == {(before["model"], before["margin"])}
        wait_until(lambda: len(processes(service, WORKER)) == 2)
        service.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: service.post("/v1/compare", PAIR).json()["margin"] != before["margin"])
        assert service.stop() == 0


def is_ready(service: Process) -> bool:
    try:
        return service.get("/readyz").status_code == 200
    except httpx.TransportError:  # a worker that was killed had accepted the connection
        return False


@pytest.mark.slow
def test_all_workers_notice_the_loss_of_the_engine(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2) as service:
        (engine,) = processes(service, ENGINE)
        engine.send_signal(signal.SIGSTOP)
        wait_until(lambda: service.get("/readyz").status_code == 503)
        engine.kill()
        wait_until(lambda: [service.get("/readyz").status_code for _ in range(8)] == [200] * 8)
        assert service.post("/v1/compare", PAIR).status_code == 200


@pytest.mark.slow
def test_accepted_work_is_finished_before_all_processes_end(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2, max_batch_tokens=512) as service, ThreadPoolExecutor(31) as clients:
        batch = clients.submit(service.post, "/v1/compare/batch", {"items": [LONG] * 80})
        singles = [clients.submit(service.post, "/v1/compare", LONG) for _ in range(30)]
        wait_until_accepted(service, 110)
        children = psutil.Process(service.popen.pid).children()
        assert service.stop() == 0
        assert not any("error" in result for result in batch.result().json()["results"])
        assert {single.result().status_code for single in singles} == {200}
    assert not any(process.is_running() for process in children)


@pytest.mark.slow
def test_a_killed_service_leaves_no_process(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2) as service:
        children = psutil.Process(service.popen.pid).children()
        assert len(children) == 3
        service.popen.kill()
        wait_until(lambda: not any(process.is_running() for process in children))
