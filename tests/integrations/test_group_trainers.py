"""Test the integrations of SkyRL, AReaL and verifiers, called as these trainers call them, against a live service."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.processes import Process
from tests.support.waiting import PATIENCE_S
from tinyrm.integrations.areal import RankedGroups
from tinyrm.integrations.skyrl import RankedGenerator
from tinyrm.integrations.verifiers import record_group_rewards

PROMPT, OTHER = "What is 48 + 24?", "Say hello."
RESPONSES = ["72, because 48 + 24 = 72.", "I like clips.", "96"]


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        return bytes(token_ids).decode()


def direct(service: Process, responses: list[str], **options: Any) -> list[float]:
    reply = service.post("/v1/rewards", {"prompt": PROMPT, "responses": responses, **options})
    assert reply.status_code == 200, reply.text
    return list(reply.json()["rewards"])


def generator(url: str, output: dict[str, Any], **options: Any) -> RankedGenerator:
    async def generate(_: Any, disable_tqdm: bool = False) -> dict[str, Any]:
        return output

    return RankedGenerator(SimpleNamespace(tokenizer=Bytes(), generate=generate), url, **options)


def batch(*names: tuple[str, int]) -> dict[str, Any]:
    """Return a batch in which the instance is the prompt."""
    ids = [SimpleNamespace(instance_id=instance, repetition_id=repetition) for instance, repetition in names]
    return {"prompts": [[{"role": "user", "content": instance}] for instance, _ in names], "trajectory_ids": ids}


def test_skyrl_adds_to_the_rewards_of_the_environment(service: Process, url: str) -> None:
    names = [(PROMPT, 0), (OTHER, 0), (PROMPT, 1), (PROMPT, 2)]
    texts = [RESPONSES[0], "Hello!", *RESPONSES[1:]]
    output = {"response_ids": [list(text.encode()) for text in texts], "rewards": [1.0, 1.0, 0.0, 0.0]}
    ranked = generator(url, output, weight=0.5, domain="reasoning")
    rewards = asyncio.run(ranked.generate(batch(*names)))["rewards"]
    assert rewards.pop(1) == 1  # alone
    expected = direct(service, RESPONSES, domain="reasoning")
    assert rewards == pytest.approx([1 + expected[0] / 2, expected[1] / 2, expected[2] / 2], abs=1e-4)


def test_skyrl_rewards_the_last_token_of_a_trajectory_in_steps(service: Process, url: str) -> None:
    input_batch = batch(*((PROMPT, repetition) for repetition in range(3)))
    first, *others = input_batch["trajectory_ids"]
    halves = [RESPONSES[0][:5], RESPONSES[0][5:], *RESPONSES[1:]]
    output = {
        "response_ids": [list(text.encode()) for text in halves],
        "rewards": [[0.0] * len(text) for text in halves],
        "trajectory_ids": [first, first, *others],
    }
    rewards = asyncio.run(generator(url, output).generate(input_batch))["rewards"]
    expected = direct(service, RESPONSES)
    assert [row[-1] for row in rewards] == pytest.approx([0, *expected], abs=1e-4)
    assert not any(any(row[:-1]) for row in rewards)


class Workflow:
    """A workflow whose samples end in order: it rejects the response None, and fails at an error."""

    tokenizer = Bytes()

    def __init__(self, *responses: str | Exception | None) -> None:
        self.responses = list(responses)
        self.began = 0

    async def arun_episode(self, engine: Any, data: dict[str, Any]) -> dict[str, Any] | None:
        number = self.began
        self.began += 1
        await asyncio.sleep(0.01 * number)
        response = self.responses[number]
        if isinstance(response, Exception):
            raise response
        if response is None:
            return None
        ids = np.array([[*PROMPT.encode(), *response.encode()]])
        return {"input_ids": ids, "loss_mask": np.arange(ids.size)[None] >= len(PROMPT), "rewards": np.array([1.0])}


class Ranked(RankedGroups, Workflow):
    pass


def run_groups(workflow: Any, *sizes: int) -> list[Any]:
    """Return what the samples of each group return, or raise. All groups have the same data and begin together."""
    data = {"messages": [{"role": "user", "content": PROMPT}]}

    async def run_group(size: int) -> list[Any]:
        return await asyncio.gather(*(workflow.arun_episode(None, data) for _ in range(size)), return_exceptions=True)

    async def main() -> list[Any]:
        groups = []
        for size in sizes:
            groups.append(asyncio.create_task(run_group(size)))
            await asyncio.sleep(0.001)
        return [one for group in await asyncio.gather(*groups) for one in group]

    return asyncio.run(main())


def test_areal_adds_to_the_rewards_of_the_workflow(service: Process, url: str) -> None:
    workflow = Ranked(*RESPONSES, base_url=url, weight=0.5, options={"domain": "reasoning"})
    rewards = [result["rewards"].item() for result in run_groups(workflow, 3)]
    expected = direct(service, RESPONSES, domain="reasoning")
    assert rewards == pytest.approx([1 + reward / 2 for reward in expected], abs=1e-4)


def test_areal_keeps_two_groups_of_one_prompt_apart(service: Process, url: str) -> None:
    results = run_groups(Ranked(*RESPONSES, *RESPONSES[:2], base_url=url), 3, 2)
    expected = direct(service, RESPONSES) + direct(service, RESPONSES[:2])
    assert [result["rewards"].item() - 1 for result in results] == pytest.approx(expected, abs=1e-4)


def test_areal_ranks_the_rest_of_a_group_without_samples_that_failed(service: Process, url: str) -> None:
    failure = RuntimeError("of the engine")
    first, rejected, second, failed = run_groups(Ranked(RESPONSES[0], None, RESPONSES[1], failure, base_url=url), 4)
    assert (rejected, failed) == (None, failure)
    rewards = [first["rewards"].item() - 1, second["rewards"].item() - 1]
    assert rewards == pytest.approx(direct(service, RESPONSES[:2]), abs=1e-4)


def test_areal_ranks_the_rest_of_a_group_without_a_sample_that_was_cancelled_at_once(
    service: Process, url: str
) -> None:
    workflow = Ranked(*RESPONSES[:2], base_url=url)
    data = {"messages": [{"role": "user", "content": PROMPT}]}

    async def main() -> list[Any]:
        cancelled, *others = [asyncio.create_task(workflow.arun_episode(None, data)) for _ in range(3)]
        asyncio.get_running_loop().call_soon(cancelled.cancel)  # between its beginning and its generation
        return await asyncio.wait_for(asyncio.gather(*others), PATIENCE_S)

    rewards = [result["rewards"].item() - 1 for result in asyncio.run(main())]
    assert rewards == pytest.approx(direct(service, RESPONSES[:2]), abs=1e-4)


class Trace:
    """A trace of verifiers: a prompt, a call of a tool with its result, and a reply."""

    def __init__(self, response: str, *, ok: bool = True) -> None:
        call = {"id": "0", "type": "function", "name": "add", "arguments": "[48, 24]"}
        self.ok = ok
        self.rewards: dict[str, tuple[float, float]] = {}
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": PROMPT},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "72", "tool_call_id": "0"},
            {"role": "assistant", "content": response},
        ]
        nodes = [
            SimpleNamespace(message=SimpleNamespace(model_dump=lambda turn=turn, **_: turn), sampled=number in (2, 4))
            for number, turn in enumerate(messages)
        ]
        self.branches = [SimpleNamespace(nodes=nodes)]

    def record_reward(self, name: str, value: float, weight: float) -> None:
        self.rewards[name] = (value, weight)


def test_verifiers_compares_traces_with_their_tools_and_without_those_that_failed(service: Process, url: str) -> None:
    traces = [Trace(RESPONSES[0]), Trace("", ok=False), *map(Trace, RESPONSES[1:])]
    asyncio.run(record_group_rewards(SimpleNamespace(traces=traces), url, weight=0.5, domain="reasoning"))
    assert traces.pop(1).rewards == {}
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    call = '<tool_call>{"name": "add", "arguments": [48, 24]}</tool_call>'
    responses = [f"{call}\n\n72\n\n{text}" for text in RESPONSES]
    body = {"prompt": prompt, "responses": responses, "domain": "reasoning"}
    expected = service.post("/v1/rewards", body).json()["rewards"]
    assert [trace.rewards["tinyrm"][0] for trace in traces] == pytest.approx(expected, abs=1e-4)
    assert all(trace.rewards["tinyrm"][1] == 0.5 for trace in traces)
