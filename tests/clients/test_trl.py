"""Test the reward function for TRL in a step of training by TRL's own trainers, each of which has groups of its own."""

import asyncio
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import run_client
from tests.support.processes import STARTER, started
from tests.support.restart import through_a_restart
from tests.support.rollouts import generation, offline_rewards, rollout
from tinyrm.chat import to_prompt, to_response
from tinyrm.client import Client
from tinyrm.integrations.trl import reward_func


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what each trainer's reward function was given, with the rewards that it should have returned."""
    folder = tmp_path_factory.mktemp("trl")
    with started(STARTER) as service:
        url = f"http://127.0.0.1:{service.port}"
        steps: dict[str, Any] = run_client("trl_steps.py", folder, url, folder, HF_HUB_OFFLINE="1", HF_HOME=str(folder))
        with Client(url) as client:
            for step in steps.values():
                for call in step["calls"]:
                    call["expected"] = group_rewards(client, call["prompts"], call["completions"])
    return steps


def group_rewards(client: Client, prompts: list[Any], completions: list[Any]) -> list[float | None]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[str(prompt)].append(row)
    rewards: list[float | None] = [None] * len(prompts)
    for group in rows.values():
        if len(group) > 1:
            responses = [to_response(completions[row]) for row in group]
            reply = client.rewards(to_prompt(prompts[group[0]]), responses, domain="general")
            for row, reward in zip(group, reply.rewards, strict=True):
                rewards[row] = reward
    return rewards


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "sizes"),
    [("grpo", [4, 2]), ("rloo", [4, 1]), ("online_dpo", [2])],
    ids=["grpo-with-messages-of-tools", "rloo", "online-dpo-with-interleaved-prompts"],
)
def test_a_step_is_taken_with_the_rewards_of_the_groups(steps: dict[str, Any], trainer: str, sizes: list[int]) -> None:
    step = steps[trainer]
    assert [group_size(call["prompts"]) for call in step["calls"]] == sizes
    for call, size in zip(step["calls"], sizes, strict=True):
        assert call["rewards"] == pytest.approx(call["expected"], abs=1e-4)
        assert (None in call["rewards"]) is (size == 1)
    assert len(set(step["calls"][0]["rewards"])) > 4
    assert step["grad_norm"] > 0
    assert math.isfinite(step["grad_norm"])


def group_size(prompts: list[Any]) -> int:
    (size,) = {prompts.count(prompt) for prompt in prompts}
    return size


@pytest.mark.slow
def test_a_restart_of_the_service_makes_no_reward_up(bundle_folder: Path) -> None:
    """A batch that the service has accepted is served before it stops, so only a later batch meets a closed port."""
    samples = sorted(rollout(64, 8), key=lambda sample: sample.group)

    def work(port: int, stopped: Path) -> list[float | None]:
        func, rewards = reward_func(f"http://127.0.0.1:{port}"), []
        for start in range(0, len(samples), 64):
            batch = samples[start : start + 64]
            asyncio.run(generation(batch[0], str(stopped)))
            rewards += func([sample.prompt for sample in batch], [sample.response for sample in batch])
        return rewards

    rewards = through_a_restart(bundle_folder, work, after=1)
    assert rewards == pytest.approx(offline_rewards(bundle_folder, samples), abs=1e-4)
