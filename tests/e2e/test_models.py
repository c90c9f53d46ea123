"""Serve several bundles, and load a new revision of one while it is served."""

import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.test_process import PAIR, keys, refused_start, total
from tests.support.processes import Process, new_client, started
from tests.support.waiting import wait_until
from tinyrm.bundle import Bundle, write_bundle
from tinyrm.cascade import Cascade
from tinyrm.manifest import MANIFEST_FILE
from tinyrm.scorer import Scorer


def changed_copy(source: Path, folder: Path, **changes: Any) -> str:
    """Copy the bundle with other fields; return its identity."""
    fields = Bundle.open(source).manifest.model_dump(exclude={"files", "revision"}) | changes
    files = {path.name: path for path in source.iterdir() if path.name != MANIFEST_FILE}
    return write_bundle(folder, files, fields).identity


@contextmanager
def asking(service: Process, threads: int = 3) -> Iterator[Counter[tuple[int, str]]]:
    """Run clients that send requests continuously; count each status and each model."""
    seen: Counter[tuple[int, str]] = Counter()
    done = threading.Event()

    def ask() -> None:
        with new_client(service.port) as client:
            while not done.is_set():
                reply = client.post("/v1/compare", json=PAIR)
                seen[reply.status_code, reply.json().get("model", reply.text)] += 1

    clients = [threading.Thread(target=ask) for _ in range(threads)]
    for client in clients:
        client.start()
    try:
        yield seen
    finally:
        done.set()
        for client in clients:
            client.join()


def served(service: Process) -> list[str]:
    return [f"{card['name']}@{card['revision']}" for card in service.get("/v1/models").json()["models"]]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_new_revision_takes_over_without_a_failed_request(bundle_folder: Path, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "toy"
    shutil.copytree(bundle_folder, folder)
    old = Bundle.open(folder).manifest.identity
    with started(folder, workers=workers) as service, asking(service) as seen:
        engines = {
            p.pid
            for p in psutil.Process(service.popen.pid).children()
            if "service.engine.worker" in " ".join(p.cmdline())
        }
        wait_until(lambda: seen[200, old] > 10)
        new = changed_copy(bundle_folder, folder, temperature=2.0)
        service.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: seen[200, new] > 50)
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in engines))
        after = seen[200, new]
        wait_until(lambda: seen[200, new] > after + 50)  # by now, each client has counted the reply that it had
        before = seen[200, old]
        wait_until(lambda: seen[200, new] > after + 100)
        assert seen[200, old] == before, "the old one answers nothing any more"
        assert served(service) == [new]
        name, revision = new.split("@")
        assert total(service, f'tinyrm_model_info{{name="{name}",revision="{revision}"}}') == 1
        assert total(service, "tinyrm_model_info") == 1, "the old revision is not told any more"
    assert set(seen) == {(200, old), (200, new)}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_with_the_scope_requests_a_reload(bundle_folder: Path, tmp_path: Path, workers: int) -> None:
    folder, path = tmp_path / "toy", tmp_path / "keys.json"
    shutil.copytree(bundle_folder, folder)
    may_not = bearer(keys(path, "new", "--name", "trainer", "--scopes", "score"))
    may = bearer(keys(path, "new", "--name", "operator", "--scopes", "score,admin"))
    with started(folder, workers=workers, api_keys_file=path) as service, new_client(service.port) as client:
        new = changed_copy(bundle_folder, folder, temperature=2.0)
        assert client.post("/admin/reload", headers=may_not).status_code == 403
        reply = client.post("/admin/reload", headers=may)
        assert (reply.status_code, reply.json()) == (202, {"status": "accepted"})
        wait_until(lambda: client.post("/v1/compare", json=PAIR, headers=may).json()["model"] == new)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.slow
def test_a_broken_revision_leaves_the_old_one_served(bundle_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    shutil.copytree(bundle_folder, folder)
    with started(folder) as service:
        before = served(service)
        changed_copy(bundle_folder, folder, temperature=2.0)
        with (folder / "model.onnx.data").open("ab") as weights:
            weights.write(b"x")
        service.popen.send_signal(signal.SIGHUP)
        with asking(service) as seen:
            wait_until(lambda: sum(seen.values()) > 100)
        assert served(service) == before
        assert set(seen) == {(200, before[0])}
        assert service.stop() == 0


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_domain_selects_the_specialist(bundle_folder: Path, tmp_path: Path, workers: int) -> None:
    specialist = changed_copy(bundle_folder, tmp_path / "safe", name="safe", temperature=3.0)
    with started(bundle_folder, specialists=f"safety={tmp_path / 'safe'}", workers=workers) as service:
        default = Bundle.open(bundle_folder).manifest.identity
        assert served(service) == [default, specialist]

        def answered_by(**fields: str) -> str:
            return str(service.post("/v1/compare", PAIR | fields).json()["model"])

        assert answered_by() == answered_by(domain="general") == default
        assert answered_by(domain="safety") == answered_by(model="safe") == answered_by(model=specialist) == specialist
        assert answered_by(domain="safety", model="toy") == default
        missing = service.post("/v1/compare", PAIR | {"model": "unheard"})
        assert (missing.status_code, missing.json()["error"]["type"]) == (404, "unknown_model")
        items = [PAIR, PAIR | {"domain": "safety"}, PAIR | {"model": "unheard"}]
        results = service.post("/v1/compare/batch", {"items": items}).json()["results"]
        assert [result.get("model", "none") for result in results] == [default, specialist, "none"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_cascade_uses_a_bundle_of_each_kind(
    bundle_folder: Path, response_bundle_folder: Path, tmp_path: Path, workers: int
) -> None:
    alone = changed_copy(response_bundle_folder, tmp_path / "alone", name="alone")
    group: Any = {
        "prompt": "2 + 2?",
        "responses": ["4", "5", "No.", "Four.", "2 + 2 = 4."],
        "strategy": "cascade",
        "top": 3,
    }
    with started(bundle_folder, more_models=tmp_path / "alone", workers=workers) as service:
        pairs = Bundle.open(bundle_folder).manifest.identity
        assert served(service) == [pairs, alone]
        reply = service.post("/v1/rank", group).json()
        ranking = Cascade(Scorer.open(tmp_path / "alone"), Scorer.open(bundle_folder), top=3)
        expected = ranking.rank(group["prompt"], group["responses"])
        assert reply["strengths"] == pytest.approx(expected.strengths.values.tolist(), abs=1e-3)
        assert (reply["model"], reply["usage"]["sequences"]) == (f"{alone}+{pairs}", 5 + 6)
        assert service.post("/v1/compare", PAIR | {"model": "alone"}).json()["model"] == alone


def test_a_specialist_of_an_unknown_domain_is_refused(bundle_folder: Path) -> None:
    done = refused_start(model=bundle_folder, specialists=f"cooking={bundle_folder}")
    assert done.returncode == 3
    assert "cooking" in done.stderr
    assert "invalid_settings" in done.stderr
