"""Test that rewards depend on the texts alone: not on what else is scored, nor on the process that replies.

With ONNX Runtime on a CPU in fp32 they are equal bit for bit. tests/ray/test_same_rewards.py tries replicas.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.test_process import total
from tests.e2e.test_workers import WORKER, processes
from tests.support.processes import Process, new_client, started
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PROMPT = "What is 2 + 2?"
CHATML = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
# Two of one length, which the engine may run together, and others.
RESPONSES = ["2 + 2 = 4.", "2 + 2 = 5.", "I cannot help with that, but here is what I can do.", "4", "def add(a, b): 4"]
FIXED = {"engine": "onnxruntime-cpu", "precision": "fp32", "threads": 1, "dialects": "openrlhf,slime"}


def settings_of(pair_bundle: Path) -> dict[str, Any]:
    """Return settings with which the domain `safety` has a model that reads pairs."""
    return {**FIXED, "specialists": f"safety={pair_bundle}"}


def rewards(service: Process, responses: list[str] = RESPONSES) -> dict[str, Any]:
    """Return every kind of reward of the responses, from a model that reads them and from one that reads pairs."""
    group = {"prompt": PROMPT, "responses": responses}
    first, *others = responses

    def post(path: str, body: Any) -> Any:
        reply = service.post(path, body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def sample(response: str) -> dict[str, Any]:
        return {"query": [f"{CHATML}{response}<|im_end|>"], "prompts": [CHATML], "labels": [""]}

    pairs = [{"prompt": PROMPT, "response_a": first, "response_b": other, "domain": "safety"} for other in others]
    return {
        "/get_reward": [post("/get_reward", sample(response))["rewards"] for response in responses],
        "/rm": [post("/rm", {"prompt": PROMPT, "response": response}) for response in responses],
        "/v1/score": [(one["raw"], one["score"]) for one in post("/v1/score", group)["results"]],
        "/v1/rewards": post("/v1/rewards", group)["rewards"],
        "pairs: /v1/compare": [post("/v1/compare", pair)["margin"] for pair in pairs],
        "pairs: /v1/rewards": post("/v1/rewards", group | {"domain": "safety"})["rewards"],
        "pairs: /get_reward": post("/get_reward?domain=safety", sample(first) | {"labels": [others[0]]})["rewards"],
    }


@pytest.fixture(scope="module")
def one(bundle_folder: Path, response_bundle_folder: Path) -> Iterator[Process]:
    with started(response_bundle_folder, **settings_of(bundle_folder)) as service:
        yield service


@pytest.fixture(scope="module")
def alone(one: Process) -> dict[str, Any]:
    """Return the rewards without any other request."""
    found = rewards(one)
    assert found["/get_reward"] == [[score] for _, score in found["/v1/score"]] == [[reward] for reward in found["/rm"]]
    assert len({raw for raw, _ in found["/v1/score"]}) == len(RESPONSES), "rewards all alike would pass for any"
    return found


@contextmanager
def flooded(service: Process, clients: int = 6) -> Iterator[None]:
    """Let clients ask for the rewards of other texts, some of them as long as those of RESPONSES, all the time."""
    leave, failures = threading.Event(), []

    def ask(number: int) -> None:
        texts = [f"2 + 2 = {number}.", f"{number} + 2 = 5.", f"{number} " * 30, f"{number}"]
        with new_client(service.port) as client:
            process = Process(service.popen, service.port, client)
            while not leave.is_set():
                try:
                    rewards(process, texts)
                except AssertionError as error:
                    failures.append(error)
                    return

    threads = [threading.Thread(target=ask, args=[number]) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        leave.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_rewards_are_the_same_among_a_flood_of_others(one: Process, alone: dict[str, Any]) -> None:
    runs, sequences = (total(one, f"tinyrm_batch_items_{what}") for what in ("count", "sum"))
    with flooded(one):
        for _ in range(5):
            assert rewards(one) == alone
    runs, sequences = total(one, "tinyrm_batch_items_count") - runs, total(one, "tinyrm_batch_items_sum") - sequences
    assert sequences > 1.5 * runs, "the engine ran the sequences of several requests together"


def test_rewards_are_the_same_from_each_of_two_workers(
    bundle_folder: Path, response_bundle_folder: Path, alone: dict[str, Any]
) -> None:
    with started(response_bundle_folder, workers=2, **settings_of(bundle_folder)) as two:
        wait_until(lambda: len(processes(two, WORKER)) == 2)
        for other in processes(two, WORKER):
            with stopped(other):  # so that it is its sibling that replies
                assert rewards(two) == alone
        with flooded(two, clients=3):
            assert rewards(two) == alone


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()
