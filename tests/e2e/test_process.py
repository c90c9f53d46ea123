"""Test `python -m service` as a process: its behaviour towards operators and orchestrators."""

import json
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from loadtests.service_process import environment
from service.process import SAME_CAUSE_S
from tests.conftest import REPOSITORY
from tests.support.processes import PATIENCE_S, STARTER, Process, free_port, started
from tests.support.waiting import wait_until
from tinyrm.bundle import Bundle
from tinyrm.comparison import Comparison
from tinyrm.pairs import read_pairs
from tinyrm.scorer import Scorer

PAIR = {"prompt": "What is 2 + 2?", "response_a": "2 + 2 = 4.", "response_b": "2 + 2 = 5."}
# A full-length comparison: many of them keep even the toy model busy for seconds.
LONG = PAIR | {"prompt": "What is the answer? " * 100}


def refused_start(**settings: object) -> subprocess.CompletedProcess[str]:
    """Start the service and expect it to fail."""
    return subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment({"port": free_port(), **settings}),
        check=False,
    )


def wait_until_accepted(process: Process, comparisons: int) -> None:
    """Wait until all comparisons except the running one are queued or finished."""
    wait_until(
        lambda: total(process, "tinyrm_queue_items") + total(process, "tinyrm_preferences_total") >= comparisons - 1,
        "the load built up",
        process=process.popen,
    )


def hold_the_engine(process: Process) -> psutil.Process:
    """Stop the engine, so that work is left however fast it is and however slow the test; SIGCONT lets it go on."""
    children = psutil.Process(process.popen.pid).children()
    (engine,) = [child for child in children if "service.engine.worker" in child.cmdline()]
    engine.send_signal(signal.SIGSTOP)
    return engine


def total(process: Process, metric: str) -> float:
    samples = [line.split() for line in process.get("/metrics").text.splitlines() if line.startswith(metric)]
    return sum(float(value) for _, value in samples)


@pytest.mark.parametrize("model", ["toy", pytest.param("starter", marks=pytest.mark.slow)])
def test_the_service_replies_refuses_and_stops_on_sigterm(model: str, bundle_folder: Path) -> None:
    folder = STARTER if model == "starter" else bundle_folder
    spec = Bundle.open(folder).manifest.spec
    comparison = Comparison(PAIR["prompt"], PAIR["response_a"], PAIR["response_b"])
    (expected,) = Scorer.open(folder).score([comparison], [spec.instruction(None)])
    # 0: the engine measures its peak, as it does in use.
    with started(folder, peak_gflops_per_s=0) as process:
        reply = process.post("/v1/compare", PAIR)
        assert reply.status_code == 200
        assert reply.json()["margin"] == pytest.approx(expected.margin, abs=1e-4)
        assert reply.json()["model"].startswith(model + "@")
        swapped = process.post(
            "/v1/compare", PAIR | {"response_a": PAIR["response_b"], "response_b": PAIR["response_a"]}
        )
        assert swapped.json()["probability_a"] == pytest.approx(reply.json()["probability_b"], abs=1e-5)
        assert process.post("/v1/compare", {"prompt": "x"}).json()["error"]["type"] == "invalid_request"
        assert process.post("/v1/compare", PAIR | {"domain": "?"}).status_code == 422
        assert process.get("/nowhere").status_code == 404
        assert process.stop() == 0
        assert not process.is_listening()


@pytest.mark.slow
def test_real_pairs_over_http_get_the_offline_results(data_dir: Path) -> None:
    pairs = read_pairs(data_dir / "validation.jsonl.gz")[::120]
    expected = Scorer.open(STARTER).score([p.comparison() for p in pairs], domain=[p.domain for p in pairs])
    with started(STARTER) as process:
        for pair, preference in zip(pairs, expected, strict=True):
            texts = {"prompt": pair.prompt, "response_a": pair.chosen, "response_b": pair.rejected}
            reply = process.post("/v1/compare", texts | {"domain": pair.domain}).json()
            assert reply["margin"] == pytest.approx(preference.margin, abs=1e-4)


def keys(path: Path, *arguments: str) -> str:
    """Run `python -m service.keys` on a file; return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "service.keys", "--file", path, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_keys_are_required_and_can_be_revoked_while_the_service_runs(bundle_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    trainer = keys(path, "new", "--name", "trainer", "--scopes", "score")
    with started(bundle_folder, api_keys_file=path) as process:

        def status(key: str, target: str = "/v1/models") -> int:
            return process.client.get(target, headers={"Authorization": f"Bearer {key}"}).status_code

        anonymous = process.post("/v1/compare", PAIR)
        assert (anonymous.status_code, anonymous.json()["error"]["type"]) == (401, "unauthorized")
        assert "server" not in anonymous.headers
        assert (status(trainer), status(trainer, "/metrics"), status(trainer + "x")) == (200, 403, 401)
        later = keys(path, "new", "--name", "prometheus", "--scopes", "metrics")
        keys(path, "revoke", "--name", "trainer")
        assert (status(trainer), status(later, "/metrics")) == (401, 200)


@pytest.mark.slow
def test_a_missing_file_of_keys_is_exit_code_3(bundle_folder: Path, tmp_path: Path) -> None:
    done = refused_start(model=bundle_folder, api_keys_file=tmp_path / "none.json")
    assert done.returncode == 3
    assert "invalid_keys" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def at_a_name(bundle_folder: Path) -> Iterator[Process]:
    """Run a service that listens at a name, for tests that leave it as it was."""
    with started(bundle_folder, host="localhost") as process:
        yield process


def test_bytes_that_are_not_a_request_do_no_harm(at_a_name: Process) -> None:
    lying = b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"
    for garbage in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST /v1/compare HTTP/1.1\r\n", lying):
        with socket.create_connection(("127.0.0.1", at_a_name.port)) as connection:
            connection.sendall(garbage)
    body = at_a_name.post("/v1/compare", PAIR | {"prompt": "x" * 10_000_000})
    assert (body.status_code, body.json()["error"]["type"]) == (413, "body_too_large")
    assert at_a_name.post("/v1/compare", PAIR).status_code == 200


@pytest.mark.parametrize(("drain_timeout_s", "items"), [(3600, 80), pytest.param(0.1, 500, marks=pytest.mark.slow)])
def test_every_accepted_comparison_gets_a_reply_after_sigterm(
    bundle_folder: Path, drain_timeout_s: float, items: int
) -> None:
    # On a slow machine no item of the list may be refused because the others of the list take too long.
    one_at_a_time = {"max_batch_tokens": 512, "max_wait_s": 3600, "drain_timeout_s": drain_timeout_s}
    is_enough = drain_timeout_s == 3600
    with started(bundle_folder, **one_at_a_time) as process, ThreadPoolExecutor(31) as clients:
        if not is_enough:
            hold_the_engine(process)
        batch = clients.submit(process.post, "/v1/compare/batch", {"items": [LONG] * items})
        accepted = items if is_enough else 20
        wait_until_accepted(process, accepted)
        singles = [clients.submit(process.post, "/v1/compare", LONG) for _ in range(30)]
        wait_until_accepted(process, accepted + 30)
        assert process.stop() == 0
        results = batch.result().json()["results"]
        refused = sum(result.get("error", {}).get("type") == "shutting_down" for result in results)
        answered = sum("probability_a" in result for result in results)
        statuses = {single.result().status_code for single in singles}
    assert refused + answered == items
    # Enough time: all are scored. Too little: what is left gets shutting_down, and soon.
    assert (refused == 0) == is_enough
    assert statuses == {200 if is_enough else 503}


@pytest.mark.slow
def test_a_list_that_exceeds_the_drain_time_keeps_its_finished_results(bundle_folder: Path) -> None:
    """Let the drain time pass before most of the list is encoded."""
    slowly = {"max_batch_tokens": 512, "max_wait_s": 3600, "drain_timeout_s": 0.1}
    with started(bundle_folder, **slowly) as process, ThreadPoolExecutor(1) as client:
        list_ = client.submit(process.post, "/v1/compare/batch", {"items": [LONG] * 2000})
        wait_until(lambda: total(process, "tinyrm_preferences_total") > 20)
        assert process.stop() == 0
        reply = list_.result()
    assert reply.status_code == 200, reply.text
    kinds = Counter(result.get("error", {}).get("type", "answered") for result in reply.json()["results"])
    assert set(kinds) == {"answered", "shutting_down"}
    assert kinds["answered"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_later_signal_ends_the_process_at_once_and_what_is_left_gets_an_error(
    bundle_folder: Path, workers: int
) -> None:
    slowly = {"max_batch_tokens": 512, "max_wait_s": 3600, "drain_timeout_s": 3600, "workers": workers}
    with started(bundle_folder, **slowly) as process, ThreadPoolExecutor(40) as clients:
        hold_the_engine(process)
        batch = clients.submit(process.post, "/v1/compare/batch", {"items": [LONG] * 2000})
        wait_until_accepted(process, 100)
        singles = [clients.submit(process.post, "/v1/compare", LONG) for _ in range(30)]
        wait_until_accepted(process, 130)
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: process.get("/readyz").status_code == 503)
        process.popen.send_signal(signal.SIGINT)  # the same cause: it changes nothing
        late = process.post("/v1/compare", PAIR)
        assert (late.status_code, late.json()["error"]["type"]) == (503, "shutting_down")
        assert late.headers["Connection"] == "close"
        time.sleep(SAME_CAUSE_S)
        assert process.popen.poll() is None, "nothing was left to do, so leaving at once proves nothing"
        assert process.stop() == 0
        replies = [single.result() for single in singles]
        # A machine that is busy may not have written the reply of each item when the connection must be closed.
        body = batch.result().json()
        errors = {result["error"]["type"] for result in body.get("results", [body]) if "error" in result}
    assert errors == {"shutting_down"}
    assert {reply.status_code for reply in replies} <= {200, 503}
    refused = [reply for reply in replies if reply.status_code == 503]
    assert all(reply.json()["error"]["type"] == "shutting_down" for reply in refused)
    assert all(reply.headers["X-Request-Id"] for reply in refused)


def test_a_missing_bundle_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    done = refused_start(model=tmp_path / "nothing", log_format="text")
    assert done.returncode == 3
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert "cannot start" in line
    assert f"{tmp_path / 'nothing'} is not a folder" in line


@pytest.mark.slow
def test_a_changed_bundle_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "toy"
    shutil.copytree(bundle_folder, copy)
    with (copy / "tokenizer.json").open("a") as file:
        file.write(" ")
    done = refused_start(model=copy)
    assert done.returncode == 3
    assert "tampered_bundle" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_setting_is_exit_code_2() -> None:
    done = refused_start(modle="models/starter")
    assert done.returncode == 2
    assert done.stderr.startswith("tinyrm: unknown settings TINYRM_MODLE; known: ")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_wrong_setting_is_exit_code_2_and_is_named() -> None:
    done = refused_start(port="eighty")
    assert done.returncode == 2
    assert "port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("host", "workers"),
    [
        *(("127.0.0.1", 1), ("[::1]", 2)),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("127.0.0.1", 2), ("[::1]", 1))),
    ],
)
def test_a_port_in_use_is_one_line_and_exit_code_3(bundle_folder: Path, host: str, workers: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as other:
        try:
            other.bind((host.strip("[]"), 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")
        other.listen()
        port = other.getsockname()[1]
        done = refused_start(model=bundle_folder, port=port, host=host, workers=workers, log_format="text")
    assert done.returncode == 3
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert f"cannot listen on {host}:{port}: address already in use; see TINYRM_HOST and TINYRM_PORT" in line


def test_a_host_that_is_none_is_one_line_and_exit_code_3(bundle_folder: Path) -> None:
    done = refused_start(model=bundle_folder, port=free_port(), host="192.0.2.1", log_format="text")
    assert done.returncode == 3
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert "cannot listen on 192.0.2.1:" in line


def test_a_name_with_several_addresses_listens_at_each(at_a_name: Process) -> None:
    port = at_a_name.port
    for address in {address[0] for *_, address in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)}:
        with suppress(OSError), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))  # this machine has the address
            with socket.create_connection((address, port)) as connection:
                connection.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_limit_on_open_files_that_is_too_low_is_named(bundle_folder: Path, workers: int) -> None:
    limited = ["sh", "-c", 'ulimit -n 100 && exec "$0" "$@"', sys.executable, "-m", "service"]
    done = subprocess.run(
        limited,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment({"model": bundle_folder, "port": free_port(), "workers": workers}),
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "the limit on open files is 100, and the service needs at least 160" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_that_nobody_reads_are_no_error() -> None:
    command = f'"{sys.executable}" -m service --settings | head -1'
    done = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("| variable | default | meaning |\n", "")


def test_an_option_prints_the_settings() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "--settings"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "| `TINYRM_MODEL` | `models/starter` |" in done.stdout


def disconnect_somewhere(port: int, request: bytes, dice: random.Random) -> None:
    """Send a part of a request or all of it and disconnect, cleanly or not, perhaps in the middle of the reply."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        if dice.random() < 0.5:
            # Closing then sends a reset instead of an end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(request[: dice.choice([1, 30, len(request) - 1, len(request), len(request)])])
        time.sleep(dice.choice([0, 0, 0.005, 0.02]))
        if dice.random() < 0.3:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.recv(10)


@pytest.mark.slow
def test_the_service_replies_after_many_clients_disconnected(bundle_folder: Path) -> None:
    content = json.dumps({"items": [PAIR, LONG]}).encode()
    head = f"POST /v1/compare/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    dice = random.Random(7)
    with started(bundle_folder) as process:
        expected = process.post("/v1/compare", PAIR).json()["probability_a"]
        with ThreadPoolExecutor(8) as clients:
            request = head.encode() + content
            visits = [clients.submit(disconnect_somewhere, process.port, request, dice) for _ in range(100)]
        assert [visit.exception() for visit in visits] == [None] * 100
        reply = process.post("/v1/compare", PAIR)
        assert reply.json()["probability_a"] == pytest.approx(expected, abs=1e-5)
        wait_until(lambda: total(process, "tinyrm_queue_tokens") == 0)
        assert process.get("/readyz").status_code == 200
        assert process.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_the_service_survives_its_engine_and_reports_the_loss(bundle_folder: Path, number: signal.Signals) -> None:
    with started(bundle_folder, engine_timeout_s=5) as process, ThreadPoolExecutor(4) as clients:
        (engine,) = psutil.Process(process.popen.pid).children()
        batch = clients.submit(process.post, "/v1/compare/batch", {"items": [LONG] * 120})
        wait_until_accepted(process, 20)
        engine.send_signal(number)
        wait_until(lambda: process.get("/readyz").status_code == 503)
        assert process.get("/healthz").status_code == 200
        wait_until(lambda: process.get("/readyz").status_code == 200)
        assert process.post("/v1/compare", PAIR).status_code == 200
        results = batch.result().json()["results"]
        kinds = [result["error"]["type"] if "error" in result else "answered" for result in results]
        assert len(kinds) == 120
        assert set(kinds) <= {"answered", "engine_failed", "engine_hung", "engine_restarting"}
        assert kinds.count("answered") >= 110, "what waited is answered by the next engine"
        assert process.stop() == 0
    assert not engine.is_running()


@pytest.mark.slow
def test_a_killed_service_leaves_no_process(bundle_folder: Path) -> None:
    with started(bundle_folder) as process:
        (engine,) = psutil.Process(process.popen.pid).children()
        process.popen.kill()
        wait_until(lambda: not engine.is_running())


@pytest.mark.slow
def test_the_work_of_a_disconnected_client_is_never_run(bundle_folder: Path) -> None:
    """The engine is held until the client has gone: on a busy machine, all could be done before."""
    with started(bundle_folder, max_wait_s=3600, engine_timeout_s=3600) as process, ThreadPoolExecutor(1) as clients:
        engine = hold_the_engine(process)
        busy = clients.submit(process.post, "/v1/compare/batch", {"items": [LONG] * 100})
        wait_until(lambda: total(process, "tinyrm_queue_items") > 20)
        body = json.dumps({"items": [LONG] * 1000}).encode()
        head = f"POST /v1/compare/batch HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", process.port)) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: total(process, "tinyrm_queue_items") > 120)
        wait_until(lambda: total(process, 'tinyrm_requests_total{endpoint="compare_batch",status="499"}') == 1)
        engine.send_signal(signal.SIGCONT)
        assert len(busy.result().json()["results"]) == 100
        wait_until(lambda: total(process, "tinyrm_queue_items") == 0)
        assert total(process, "tinyrm_preferences_total") == 100
