"""The process behaves as the manifests expect: probes, shutdown, environment."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from service.settings import PREFIX
from tests.deploy.manifests import applied, container_of, environment_of
from tests.e2e.test_process import LONG, hold_the_engine, wait_until_accepted
from tests.support.processes import PATIENCE_S, Process, started
from tests.support.waiting import wait_until

POD = applied()["Deployment"]["spec"]["template"]["spec"]
CONTAINER = container_of(applied()["Deployment"])
# Threads, address and port suit the test machine.
SETTINGS = {
    name.removeprefix(PREFIX).lower(): value
    for name, value in environment_of(CONTAINER).items()
    if name.removeprefix(PREFIX) not in ("HOST", "PORT", "THREADS")
}


def probe_succeeds(process: Process, probe: str) -> bool:
    """Return what the kubelet would see: success is a status from 200 to 399 in time, on a new connection."""
    settings = CONTAINER[probe]
    try:
        reply = process.client.get(settings["httpGet"]["path"], timeout=settings["timeoutSeconds"])
    except httpx.TransportError:
        return False
    return 200 <= reply.status_code < 400


def probe_results(process: Process) -> Iterator[tuple[bool, bool]]:
    """Yield (alive, ready) until the process ends."""
    while process.popen.poll() is None:
        yield probe_succeeds(process, "livenessProbe"), probe_succeeds(process, "readinessProbe")
        time.sleep(0.02)


@pytest.mark.slow
def test_probes_follow_a_replica_from_its_start_to_its_end(bundle_folder: Path) -> None:
    with started(bundle_folder, **SETTINGS, max_batch_tokens=512) as process, ThreadPoolExecutor(1) as client:
        assert [probe_succeeds(process, probe) for probe in CONTAINER if probe.endswith("Probe")] == [True] * 3
        first = client.submit(process.post, "/v1/compare/batch", {"items": [LONG] * 150})
        wait_until_accepted(process, 150)
        assert probe_succeeds(process, "readinessProbe"), "a busy replica is ready"
        first.result()
        engine = hold_the_engine(process)
        second = client.submit(process.post, "/v1/compare/batch", {"items": [LONG] * 150})
        wait_until_accepted(process, 300)
        process.popen.send_signal(signal.SIGTERM)
        answers = []
        for answer in probe_results(process):
            answers.append(answer)
            if len(answers) == 6:
                engine.send_signal(signal.SIGCONT)
        assert process.popen.wait(PATIENCE_S) == 0
        results = [result for work in (first, second) for result in work.result().json()["results"]]
    assert all("probability_a" in result for result in results), "the drain of the manifest was long enough"
    after_sigterm = answers[1:]  # the first probe may have been under way
    assert not any(ready for _, ready in after_sigterm)
    alive = [alive for alive, _ in after_sigterm]
    assert alive.count(True) > 3, "it answered while it drained"
    assert alive == sorted(alive, reverse=True), "until the listener closed"


@pytest.mark.slow
def test_an_engine_that_dies_costs_readiness_and_no_restart(bundle_folder: Path) -> None:
    with started(bundle_folder, **SETTINGS) as process:
        (engine,) = psutil.Process(process.popen.pid).children()
        engine.kill()
        answers: list[tuple[bool, bool]] = []
        for answer in probe_results(process):
            answers.append(answer)
            if answer == (True, True) and (True, False) in answers:
                break
            assert len(answers) < 1000
        assert all(alive for alive, _ in answers), "Kubernetes would have killed a replica that recovers by itself"
        assert process.stop() == 0


@pytest.mark.slow
def test_shutdown_waits_for_a_client_that_does_not_read_its_reply(
    bundle_folder: Path,
) -> None:
    drain_s = 2
    with started(bundle_folder, dialects="nemo-gym", group_size=2, drain_timeout_s=drain_s) as process:
        body = {"responses_create_params": {"input": "2 + 2?"}, "response": {"output": []}}
        # The reply repeats what was sent.
        url, filling = f"http://127.0.0.1:{process.port}/verify", "x" * 7_000_000
        request = httpx.Request("POST", url, json=body | {"filling": filling})
        head = f"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request.content)}\r\n\r\n"
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", process.port))
            deaf.sendall(head.encode() + request.content)
            wait_until(lambda: "tinyrm_cohort_samples 1.0" in process.get("/metrics").text)
            assert process.post("/verify", body).status_code == 200, "the group is complete"
            signalled_at = time.monotonic()
            assert process.stop() == 0
            took_s = time.monotonic() - signalled_at
    assert drain_s <= took_s, "the service did not wait, so the manifest need not either"


def test_a_pod_gets_no_variables_of_services() -> None:
    """The service ignores them (tests/service/test_settings.py); without them, nobody takes them for its settings."""
    assert POD["enableServiceLinks"] is False


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
