"""Test faults of processes: lost and hung ones, signals to all of them, and signals during the start."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from loadtests.service_process import environment
from tests.conftest import REPOSITORY
from tests.e2e.test_models import changed_copy
from tests.e2e.test_process import LONG, PAIR, hold_the_engine, wait_until_accepted
from tests.e2e.test_workers import ENGINE, WORKER, is_ready, processes
from tests.support.processes import PATIENCE_S, Process, free_port, started
from tests.support.waiting import wait_until
from tinyrm.bundle import Bundle


def log_of(service: Process) -> Path:
    files = psutil.Process(service.popen.pid).open_files()
    return next(Path(file.path) for file in files if file.path.endswith("service.log"))


@pytest.mark.slow
def test_as_many_workers_as_shared_threads_keep_nothing_from_running(bundle_folder: Path) -> None:
    """Start as many as the event loop's own pool has threads: a lost engine is replaced, and a reload runs."""
    workers = (os.cpu_count() or 1) + 4
    with started(bundle_folder, workers=workers, engine="null") as service:
        (engine,) = processes(service, ENGINE)
        engine.kill()
        wait_until(lambda: service.get("/readyz").status_code == 503)
        wait_until(lambda: is_ready(service))
        assert service.post("/v1/compare", PAIR).status_code == 200
        log = log_of(service)
        service.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: '"event": "unchanged"' in log.read_text())
        assert service.stop() == 0


@pytest.mark.slow
def test_twenty_lost_workers_in_a_row_under_load(bundle_folder: Path, tmp_path: Path) -> None:
    """Kill a worker again and again, while the folder holds another revision: ready again each time."""
    folder = tmp_path / "served"
    shutil.copytree(bundle_folder, folder)
    with started(folder, workers=2) as service:
        expected = service.post("/v1/compare", PAIR).json()
        changed_copy(bundle_folder, folder, temperature=9.0)
        seen: Counter[object] = Counter()
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                try:
                    reply = service.post("/v1/compare", PAIR)
                except httpx.TransportError:
                    seen["cut by the kill"] += 1
                    continue
                body = reply.json()
                seen[reply.status_code, body.get("model", body.get("error", {}).get("type")), body.get("margin")] += 1

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            for _ in range(20):
                (first, *_) = processes(service, WORKER)
                first.kill()
                wait_until(lambda first=first: len(now := processes(service, WORKER)) == 2 and first not in now)  # type: ignore[misc]
                wait_until(lambda: is_ready(service))
            replies = [service.post("/v1/compare", PAIR) for _ in range(20)]
        finally:
            done.set()
            for client in clients:
                client.join()
        assert {reply.status_code for reply in replies} == {200}
        assert set(seen) - {"cut by the kill"} == {(200, expected["model"], expected["margin"])}
        (engine,) = processes(service, ENGINE)
        shared = runtime_folder(engine)
        assert len(list(shared.glob("*.db"))) == 3 * 4, "a lost worker leaves no files"
        assert service.stop() == 0
        assert not shared.exists()


def runtime_folder(process: psutil.Process) -> Path:
    return Path(process.environ()["PROMETHEUS_MULTIPROC_DIR"])


@pytest.mark.slow
def test_signals_to_the_whole_group_lose_no_accepted_request(bundle_folder: Path) -> None:
    """Ctrl-C in a terminal, a service manager that signals every process, and both with the supervisor's own signal."""
    for attempt in range(6):
        numbers = [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGINT)][attempt % 3]
        with started(bundle_folder, workers=2, max_batch_tokens=512, max_wait_s=3600) as service:
            group = [psutil.Process(service.popen.pid), *psutil.Process(service.popen.pid).children()]
            with ThreadPoolExecutor(100) as clients:
                requests = [clients.submit(service.post, "/v1/compare", LONG) for _ in range(100)]
                wait_until_accepted(service, 100)
                for number in numbers:
                    for process in group:
                        process.send_signal(number)
                replies = [request.result() for request in requests]
            assert {reply.status_code for reply in replies} == {200}, attempt
            assert service.popen.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(bundle_folder: Path) -> None:
    with started(bundle_folder, workers=2, engine="null") as service:
        hung, _ = processes(service, WORKER)
        log = log_of(service)
        hung.send_signal(signal.SIGSTOP)
        wait_until(lambda: '"event": "worker hung"' in log.read_text())
        wait_until(lambda: len(now := processes(service, WORKER)) == 2 and hung not in now)
        wait_until(lambda: is_ready(service))
        assert {service.post("/v1/compare", PAIR).status_code for _ in range(8)} == {200}
        assert service.stop() == 0


@pytest.mark.slow
def test_a_reload_that_outlasts_the_drain_ends_no_worker(bundle_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    shutil.copytree(bundle_folder, folder)
    slowly = {"max_batch_tokens": 512, "max_wait_s": 3600, "drain_timeout_s": 0.5, "workers": 2}
    slowly |= {"engine_timeout_s": 3600}
    with started(folder, **slowly) as service, ThreadPoolExecutor(4) as clients:
        old, log = Bundle.open(folder).manifest.identity, log_of(service)
        workers = processes(service, WORKER)
        batches = [clients.submit(service.post, "/v1/compare/batch", {"items": [LONG] * 400}) for _ in range(4)]
        wait_until_accepted(service, 400)
        hold_the_engine(service)
        new = changed_copy(bundle_folder, folder, temperature=9.0)
        service.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: service.post("/v1/compare", PAIR).json().get("model") == new)
        results = [result for batch in batches for result in batch.result().json()["results"]]
        kinds = Counter(result["model"] if "model" in result else result["error"]["type"] for result in results)
        assert set(kinds) <= {old, new, "shutting_down"}
        assert kinds["shutting_down"], "the drain was long enough, so this proves nothing"
        assert processes(service, WORKER) == workers
        assert '"event": "worker ended"' not in log.read_text()
        assert {service.post("/v1/compare", PAIR).status_code for _ in range(20)} == {200}
        assert service.stop() == 0


def launched(folder: Path, log: Path, shell: str = "exec {command}", **settings: object) -> "subprocess.Popen[bytes]":
    command = shell.format(command=f"{sys.executable} -m service")
    with log.open("wb") as output:
        return subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=REPOSITORY,
            env=environment({"model": folder, "port": free_port(), **settings}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_signals_during_the_start(bundle_folder: Path, tmp_path: Path, workers: int) -> None:
    """At every moment of a start, from the first imports on: SIGHUP does no harm, and SIGTERM ends it cleanly."""
    log, temporary = tmp_path / "log", tmp_path / "temporary"
    temporary.mkdir()
    for moment in range(12):
        service = launched(bundle_folder, log, f"TMPDIR={temporary} exec {{command}}", workers=workers)
        wait_until(lambda service=service: handles_signals(service.pid), process=service)  # type: ignore[misc]
        time.sleep(0.15 * moment)
        service.send_signal(signal.SIGHUP)
        service.send_signal(signal.SIGTERM)
        assert service.wait(PATIENCE_S) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert "stop" in log.read_text()
        assert list(temporary.iterdir()) == []


def handles_signals(pid: int) -> bool:
    """Return whether the process has a handler for SIGTERM and ignores or handles SIGHUP."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sets = {line.split(":")[0]: int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn", "SigCgt"))}
    ignored, caught = sets["SigIgn"], sets["SigCgt"]
    term, hup = 1 << (signal.SIGTERM - 1), 1 << (signal.SIGHUP - 1)
    return bool(caught & term) and bool((ignored | caught) & hup)


@pytest.mark.slow
def test_a_service_without_standard_streams_serves_and_ends_cleanly(bundle_folder: Path, tmp_path: Path) -> None:
    port = free_port()
    service = launched(bundle_folder, tmp_path / "log", "exec {command} <&- >&- 2>&-", port=port)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            process = Process(service, port, client)
            wait_until(process.is_ready, process=service)
            assert process.post("/v1/compare", PAIR).status_code == 200
            assert process.stop() == 0
    finally:
        service.kill()


@pytest.mark.slow
def test_a_long_path_for_temporary_files_does_no_harm(bundle_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        with started(bundle_folder, workers=2, engine="null") as service:
            assert service.post("/v1/compare", PAIR).status_code == 200
            assert service.stop() == 0
