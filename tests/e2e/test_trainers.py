"""Send the requests of trainers to the real process, byte for byte as their HTTP clients do.

A toy that reads pairs compares the samples of a group. Two others, of responses and of sets, score each alone.
tests/clients runs trainers' own code.
"""

import asyncio
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.processes import PATIENCE_S, Process, started

GROUPS, GROUP_SIZE = 4, 6

Sample = tuple[int, str, str]
Ask = Callable[[aiohttp.ClientSession, str, str], Awaitable[float]]


DIALECTS = "openrlhf,slime,verl"


@pytest.fixture(scope="module")
def of_pairs(bundle_folder: Path) -> Iterator[Process]:
    with started(bundle_folder, dialects=DIALECTS, group_size=GROUP_SIZE, cohort_timeout_s=PATIENCE_S) as process:
        yield process


@pytest.fixture(scope="module")
def of_responses(response_bundle_folder: Path) -> Iterator[Process]:
    with started(response_bundle_folder, dialects=DIALECTS, workers=2) as process:
        yield process


@pytest.fixture(scope="module")
def of_sets(shared_prompt_bundle_folder: Path) -> Iterator[Process]:
    with started(shared_prompt_bundle_folder, dialects=DIALECTS) as process:
        yield process


@pytest.fixture(
    scope="module",
    params=["of_pairs", *(pytest.param(other, marks=pytest.mark.slow) for other in ("of_responses", "of_sets"))],
)
def trainers(request: pytest.FixtureRequest) -> Process:
    process: Process = request.getfixturevalue(request.param)
    return process


def rollouts() -> list[Sample]:
    """Return group, templated prompt and response of each sample, in the random order in which generation ends."""
    samples = [
        (group, f"<|im_start|>user\nWhat is {group} + {group}?<|im_end|>\n<|im_start|>assistant\n", answer)
        for group in range(GROUPS)
        for answer in [f"{group} + {group} = {2 * group + off}." + " I am sure." * off for off in range(GROUP_SIZE)]
    ]
    random.Random(0).shuffle(samples)
    return samples


async def ask_all(ask: Ask) -> list[float]:
    """Send all samples at the same time, each in its own request."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=GROUPS * GROUP_SIZE)) as session:
        return await asyncio.gather(*(ask(session, prompt, response) for _, prompt, response in rollouts()))


def by_group(rewards: list[float]) -> list[list[float]]:
    groups: list[list[float]] = [[] for _ in range(GROUPS)]
    for (group, _, _), reward in zip(rollouts(), rewards, strict=True):
        groups[group].append(reward)
    return groups


def check(rewards: list[float], expected: list[list[float]]) -> None:
    """Check that rewards are not all equal in a group, and are those of /v1/rewards or /v1/score."""
    for group, others in zip(by_group(rewards), expected, strict=True):
        assert len(group) == GROUP_SIZE
        assert max(group) - min(group) > 1e-3
        assert group == pytest.approx(others, abs=1e-4)


@pytest.fixture(scope="module")
def expected(trainers: Process) -> list[list[float]]:
    """Return the rewards that the service's endpoints give the samples of each group, in the order of `rollouts`."""
    groups: list[list[str]] = [[] for _ in range(GROUPS)]
    for group, _, response in rollouts():
        groups[group].append(response)
    bodies = [{"prompt": f"What is {n} + {n}?", "responses": responses} for n, responses in enumerate(groups)]
    (card,) = trainers.get("/v1/models").json()["models"]
    if card["scores_alone"]:
        return [[one["score"] for one in trainers.post("/v1/score", body).json()["results"]] for body in bodies]
    rewards = [trainers.post("/v1/rewards", body).json()["rewards"] for body in bodies]
    assert [sum(group) for group in rewards] == pytest.approx([0] * GROUPS, abs=1e-6)
    return rewards


async def posted(session: aiohttp.ClientSession, url: str, body: Any) -> Any:
    """Post as all three trainers do."""
    async with session.post(url, json=body) as response:
        response.raise_for_status()
        return await response.json()


def test_the_documented_openrlhf_bodies_are_accepted(trainers: Process, expected: list[list[float]]) -> None:
    async def ask(session: aiohttp.ClientSession, prompt: str, response: str) -> float:
        body = {"query": [prompt + response + "<|im_end|>"], "prompts": [prompt], "labels": [""]}
        reply = await posted(session, f"http://127.0.0.1:{trainers.port}/get_reward", body)
        assert 0 <= reply["scores"][0] <= 1
        assert {len(values) for values in reply["extra_logs"].values()} == {1}
        (reward,) = reply["rewards"]
        return float(reward)

    check(asyncio.run(ask_all(ask)), expected)


@pytest.mark.slow
def test_the_documented_slime_bodies_are_accepted(trainers: Process, expected: list[list[float]]) -> None:
    async def ask(session: aiohttp.ClientSession, prompt: str, response: str) -> float:
        body = {"prompt": prompt, "response": response, "label": None}
        reward = await posted(session, f"http://127.0.0.1:{trainers.port}/rm", body)
        assert isinstance(reward, float)
        return reward

    check(asyncio.run(ask_all(ask)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_documented_verl_bodies_are_accepted(trainers: Process, expected: list[list[float]], engine: str) -> None:
    async def ask(session: aiohttp.ClientSession, prompt: str, response: str) -> float:
        text = f"{prompt}{response}<|im_end|>\n"
        base = f"http://127.0.0.1:{trainers.port}"
        if engine == "vllm":
            reply = await posted(session, f"{base}/classify", {"model": "/rm", "input": text, "use_activation": False})
            return float(reply["data"][-1]["probs"][-1])
        reply = await posted(session, f"{base}/v1/embeddings", {"model": "/rm", "input": text})
        return float(reply["data"][-1]["embedding"][-1])

    check(asyncio.run(ask_all(ask)), expected)


def samples_waiting(process: Process) -> float:
    (line,) = [text for text in process.get("/metrics").text.splitlines() if text.startswith("tinyrm_cohort_samples ")]
    return float(line.split()[1])


def wait_for_samples(process: Process, count: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while samples_waiting(process) != count:
        assert time.monotonic() < until, f"never {count} samples"
        time.sleep(0.02)


def test_a_client_that_disconnects_leaves_its_cohort(of_pairs: Process) -> None:
    body = json.dumps({"prompt": "Will you wait?", "response": "No.", "label": None}).encode()
    head = b"POST /rm HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with closing(socket.create_connection(("127.0.0.1", of_pairs.port))) as connection:
        connection.sendall(head + body)
        wait_for_samples(of_pairs, 1)
    wait_for_samples(of_pairs, 0)


@pytest.mark.slow
def test_a_service_that_stops_lets_waiting_samples_be_sent_again(bundle_folder: Path) -> None:
    """A reward without the rest of the group, which a trainer cannot tell from a tie, would be kept."""

    async def ask(port: int) -> Any:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/rm"
            bodies = [{"prompt": "q", "response": text, "label": None} for text in ("short", "and longer")]
            tasks = [asyncio.create_task(posted(session, url, body)) for body in bodies]
            await asyncio.to_thread(wait_for_samples, process, 2)
            process.popen.terminate()
            return await asyncio.gather(*tasks, return_exceptions=True)

    with started(bundle_folder, dialects="slime", cohort_timeout_s=600) as process:
        refused = asyncio.run(ask(process.port))
        assert [error.status for error in refused] == [503, 503]
        assert process.popen.wait(PATIENCE_S) == 0
