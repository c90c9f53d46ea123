"""Lose or change parts under load, and check that each request gets a reply."""

import asyncio
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from loadtests.payloads import synthetic
from tests.e2e.test_process import keys
from tests.ray.cluster import PATIENCE_S, Cluster
from tests.ray.conftest import TwoNodes
from tests.support.processes import STARTER

pytestmark = pytest.mark.slow

# Callers of short requests, and of long ones: it is those that a replica is lost with.
SHORT, LONG = 6, 3
LONG_ITEMS = 12


@dataclass
class Answers:
    """statuses: count of each; a refusal has its body, too, and a broken connection its error's name. ends: the time of
    each reply.
    """

    statuses: "Counter[int | str]" = field(default_factory=Counter)
    models: "Counter[str]" = field(default_factory=Counter)
    ends: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.statuses.values())

    def longest_gap_s(self) -> float:
        return max((later - earlier for earlier, later in zip(self.ends, self.ends[1:], strict=False)), default=0)

    def note(self, reply: httpx.Response | Exception) -> None:
        if isinstance(reply, Exception):
            self.statuses[type(reply).__name__] += 1
        else:
            is_done = reply.status_code == httpx.codes.OK
            self.statuses[reply.status_code if is_done else f"{reply.status_code}: {reply.text[:300]}"] += 1
            shown = reply.json()
            self.models[shown.get("results", [shown])[0].get("model", "none")] += 1
        self.ends.append(time.monotonic())


@contextmanager
def load(cluster: Cluster, long_callers: int = LONG) -> Iterator[Answers]:
    """Run callers that send one request after the other, without retries, until the end."""
    answers, leave = Answers(), threading.Event()
    long = {"items": [{"prompt": "long " * 2000, "response_a": "a", "response_b": "b"}] * LONG_ITEMS}

    async def call(client: httpx.AsyncClient, path: str, body: object) -> None:
        while not leave.is_set():
            try:
                answers.note(await client.post(path, json=body))
            except httpx.HTTPError as error:
                answers.note(error)

    async def calls() -> None:
        base = f"http://127.0.0.1:{cluster.port}"
        async with httpx.AsyncClient(base_url=base, timeout=3 * PATIENCE_S, trust_env=False) as client:
            short = [call(client, "/v1/compare", body) for body in synthetic(SHORT)]
            await asyncio.gather(*short, *(call(client, "/v1/compare/batch", long) for _ in range(long_callers)))

    thread = threading.Thread(target=lambda: asyncio.run(calls()))
    thread.start()
    try:
        yield answers
        wait_for_more(answers)
    finally:
        leave.set()
        thread.join(PATIENCE_S)


def wait_for_more(answers: Answers, more: int = 40) -> None:
    least, deadline = answers.count + more, time.monotonic() + PATIENCE_S
    while answers.count < least:
        assert time.monotonic() < deadline, answers
        time.sleep(0.05)


@pytest.fixture
def whole(two_nodes: TwoNodes) -> Iterator[TwoNodes]:
    """Provide two nodes with a replica each, before and after the test."""
    two_nodes.heal()
    yield two_nodes
    two_nodes.heal()


def test_no_reply_is_lost_when_a_replica_is_killed(whole: TwoNodes) -> None:
    cluster = whole.cluster
    with load(cluster) as answers:
        wait_for_more(answers)
        victim = cluster.replicas()[0]
        replica = psutil.Process(victim["pid"])
        family = [replica, *replica.children(recursive=True)]
        assert len(family) > 1, "its engine is a process of its own"
        replica.kill()
        cluster.wait(
            lambda: victim["actor_id"] not in {replica["actor_id"] for replica in cluster.replicas()},
            "the loss was not noticed",
        )
        wait_for_more(answers)
        cluster.wait_until_running(2)
    assert set(answers.statuses) == {200}, answers.statuses
    cluster.wait(lambda: not any(map(is_alive, family)), "the replica's engine is still there")


def test_no_reply_is_lost_when_a_node_is_killed(whole: TwoNodes, capsys: pytest.CaptureFixture[str]) -> None:
    """Send SIGKILL to the node and its replica, which holds requests. Another node joins."""
    cluster = whole.cluster
    with load(cluster) as answers:
        wait_for_more(answers)
        began = time.monotonic()
        cluster.kill(cluster.nodes[1])
        wait_for_more(answers)
        cluster.wait(lambda: len(running(cluster)) == 1, "the loss was not noticed", cluster.status)
        noticed_s = time.monotonic() - began
        cluster.add_node()
        began = time.monotonic()
        cluster.wait_until_running(2)
        recovered_s = time.monotonic() - began
    with capsys.disabled():
        print(  # noqa: T201 - how long it took is to be seen
            f"\na node killed: {dict(answers.statuses)}, longest gap {answers.longest_gap_s():.1f} s, noticed after "
            f"{noticed_s:.1f} s, two replicas again {recovered_s:.1f} s after another node was started"
        )
    assert set(answers.statuses) == {200}, answers.statuses


def test_another_bundle_is_rolled_out_without_a_failed_request(whole: TwoNodes, bundle_folder: Path) -> None:
    cluster = whole.cluster
    with load(cluster) as answers:
        wait_for_more(answers)
        whole.serve(bundle_folder)
        wait_for_more(answers)
    assert set(answers.statuses) == {200}, answers.statuses
    before, after = sorted(answers.models)
    assert before.startswith("starter@")
    assert after.startswith("toy@")
    with cluster.client() as client:
        cards = [client.get("/v1/models").json()["models"][0]["name"] for _ in range(6)]
    assert set(cards) == {"toy"}


def test_with_room_a_new_replica_is_ready_before_an_old_one_stops(
    whole: TwoNodes, bundle_folder: Path, tmp_path: Path
) -> None:
    """Roll out to one replica, with callers that wait for ten seconds: first an invalid bundle, then a valid one.

    Ray's processes are at a lower priority than the other tests, beside which a request takes more than two seconds.
    """
    broken = shutil.copytree(bundle_folder, tmp_path / "broken")
    with (broken / "tokenizer.json").open("a") as file:
        file.write(" ")
    cluster, settings = whole.cluster, {"engine": "onnxruntime-cpu", "max_wait_s": 10}
    whole.bundle = Path("none")  # so that the starter is served again, whatever happens here
    cluster.deploy({"bundle": str(STARTER), "settings": settings}, num_replicas=1)
    cluster.wait_until_running(1)
    with load(cluster, long_callers=0) as answers:
        cluster.deploy({"bundle": str(broken), "settings": settings}, num_replicas=1)
        cluster.wait(lambda: "tokenizer.json" in str(cluster.status()), "no reason is shown", cluster.status)
        wait_for_more(answers)
        assert set(answers.statuses) == {200}, answers.statuses
        assert {name.split("@")[0] for name in answers.models} == {"starter"}
        cluster.deploy({"bundle": str(bundle_folder), "settings": settings}, num_replicas=1)
        cluster.wait(lambda: any(name.startswith("toy@") for name in answers.models), "it is not served")
        cluster.wait_until_running(1)
    assert set(answers.statuses) == {200}, answers.statuses


def test_without_a_replica_requests_are_refused_with_retry_after(whole: TwoNodes) -> None:
    """Scale to zero, with one place in the queue: a request is refused in time and starts a replica for later ones."""
    cluster = whole.cluster
    whole.bundle = Path("none")
    cluster.deploy(
        {"bundle": str(STARTER), "settings": {"engine": "onnxruntime-cpu", "max_wait_s": 0.5}},
        autoscaling_config={
            "min_replicas": 0,
            "initial_replicas": 0,
            "max_replicas": 1,
            "upscale_delay_s": 0,
            "downscale_delay_s": 1,
        },
        max_queued_requests=1,
    )
    cluster.wait_until_running(0)

    async def ask(calls: int) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{cluster.port}", trust_env=False) as client:
            body = synthetic(1)[0]
            return await asyncio.gather(*(client.post("/v1/compare", json=body, timeout=60) for _ in range(calls)))

    refused = asyncio.run(ask(6))
    kinds = {(reply.status_code, reply.json()["error"]["type"]) for reply in refused}
    assert kinds == {(429, "overloaded"), (503, "unavailable")}
    assert all(int(reply.headers["retry-after"]) > 0 for reply in refused)
    cluster.wait(lambda: asyncio.run(ask(1))[0].status_code == httpx.codes.OK, "it stays refused", cluster.status)


def test_the_ingress_requires_keys(whole: TwoNodes, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    score, metrics = (keys(path, "new", "--name", scope, "--scopes", scope) for scope in ("score", "metrics"))
    whole.bundle = Path("none")
    settings = {"engine": "onnxruntime-cpu", "api_keys_file": str(path)}
    whole.cluster.deploy({"bundle": str(STARTER), "settings": settings}, num_replicas=1)
    with whole.cluster.client() as client:

        def status(key: str, target: str = "/metrics") -> int:
            return client.get(target, headers={"Authorization": f"Bearer {key}"} if key else {}).status_code

        whole.cluster.wait(lambda: status("") == httpx.codes.UNAUTHORIZED, "no key is required")
        whole.cluster.wait(lambda: status("", "/readyz") == httpx.codes.OK, "no replica")
        assert [status(key) for key in ("unknown", score, metrics)] == [401, 403, 200]
        assert [status(key, "/v1/models") for key in ("unknown", metrics, score)] == [401, 403, 200]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def running(cluster: Cluster) -> list[dict[str, object]]:
    return [replica for replica in cluster.replicas() if replica["state"] == "RUNNING"]
