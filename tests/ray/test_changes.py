"""What is lost and what is changed while requests come: each of them is answered."""

import asyncio
import os
import shutil
import signal
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
from tests.ray.cluster import PATIENCE_S, Cluster
from tests.ray.conftest import TwoNodes

CLIENTS = 8


@dataclass
class Answers:
    """statuses: how often each; a broken connection has its error's name. ends: when each answer came."""

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
            self.statuses[reply.status_code] += 1
            self.models[reply.json().get("model", "none")] += 1
        self.ends.append(time.monotonic())


@contextmanager
def load(cluster: Cluster) -> Iterator[Answers]:
    """Callers who ask one thing after the other, without trying again, until the end."""
    answers, leave = Answers(), threading.Event()

    async def call(client: httpx.AsyncClient, body: object) -> None:
        while not leave.is_set():
            try:
                answers.note(await client.post("/v1/compare", json=body))
            except httpx.HTTPError as error:
                answers.note(error)

    async def calls() -> None:
        base = f"http://127.0.0.1:{cluster.port}"
        async with httpx.AsyncClient(base_url=base, timeout=PATIENCE_S, trust_env=False) as client:
            await asyncio.gather(*(call(client, body) for body in synthetic(CLIENTS)))

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
    """Two nodes with a replica each, before and after."""
    two_nodes.heal()
    yield two_nodes
    two_nodes.heal()


def test_a_killed_replica_costs_no_answer(whole: TwoNodes) -> None:
    cluster = whole.cluster
    with load(cluster) as answers:
        wait_for_more(answers)
        victim = cluster.replicas()[0]
        os.kill(victim["pid"], signal.SIGKILL)
        cluster.wait(
            lambda: victim["actor_id"] not in {replica["actor_id"] for replica in cluster.replicas()},
            "nobody noticed",
        )
        wait_for_more(answers)
        cluster.wait_until_running(2)
    assert set(answers.statuses) == {200}, answers.statuses
    assert not psutil.pid_exists(victim["pid"])


def test_a_killed_node_costs_no_answer(whole: TwoNodes, capsys: pytest.CaptureFixture[str]) -> None:
    """The node, its replica with requests in it, and all else there: SIGKILL. Another node joins."""
    cluster = whole.cluster
    with load(cluster) as answers:
        wait_for_more(answers)
        began = time.monotonic()
        cluster.kill(cluster.nodes[1])
        wait_for_more(answers)
        cluster.wait(lambda: len(running(cluster)) == 1, "nobody noticed", cluster.status)
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


def test_a_bundle_that_is_none_leaves_the_one_before(whole: TwoNodes, bundle_folder: Path, tmp_path: Path) -> None:
    """A changed file: the rollout ends, with the reason where `serve status` shows it, and nothing else happens."""
    broken = shutil.copytree(bundle_folder, tmp_path / "broken")
    with (broken / "tokenizer.json").open("a") as file:
        file.write(" ")
    cluster = whole.cluster
    with load(cluster) as answers:
        cluster.deploy({"bundle": str(broken)}, num_replicas=2, max_replicas_per_node=1)
        cluster.wait(lambda: "tokenizer.json" in str(cluster.status()), "no reason is told", cluster.status)
        wait_for_more(answers)
    assert set(answers.statuses) == {200}, answers.statuses
    assert {name.split("@")[0] for name in answers.models} == {"starter"}
    whole.serve()


def test_without_a_replica_callers_are_told_when_to_come_again(whole: TwoNodes) -> None:
    """Scaled to nothing: the first request is refused in time and starts a replica; a later one is answered."""
    cluster = whole.cluster
    settings = {"engine": "onnxruntime-cpu", "max_wait_s": 0.5}
    cluster.deploy(
        {"settings": settings}, autoscaling_config={"min_replicas": 0, "max_replicas": 1, "upscale_delay_s": 0}
    )
    whole.bundle = Path("none")  # so that it is served again
    cluster.wait(lambda: not cluster.replicas(), "replicas stay", cluster.status)
    with cluster.client() as client:
        refused = client.post("/v1/compare", json=synthetic(1)[0])
        cluster.wait(
            lambda: client.post("/v1/compare", json=synthetic(1)[0]).status_code == httpx.codes.OK, "it stays refused"
        )
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "unavailable")
    assert int(refused.headers["retry-after"]) > 0


def running(cluster: Cluster) -> list[dict[str, object]]:
    return [replica for replica in cluster.replicas() if replica["state"] == "RUNNING"]
