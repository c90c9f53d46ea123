"""Reward a rollout by verifiers' own environments, as many groups at a time as a training has, and print its rewards.

    verifiers_rollout.py URL GROUPS SIZE [single]

The agent is replaced by one that writes the rollout's responses after their times. `single` scores each trace alone, by
a reward function of the task.
"""

# ruff: noqa: E402 - some modules must be replaced before verifiers is imported

import asyncio
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from tests.support.absent import import_as_nothing
from tests.support.rollouts import Sample, generation, rollout
from tinyrm.integrations.verifiers import record_group_rewards

# Sandboxes in a cloud, and the grader of mathematics.
import_as_nothing("prime_sandboxes", "math_verify")

import verifiers.v1 as vf
from verifiers.v1.configs.task import TaskConfig
from verifiers.v1.envs.best_of_n.env import BestOfNEnv, BestOfNEnvConfig
from verifiers.v1.graph import MessageNode
from verifiers.v1.trace import AgentInfo, TraceTask
from verifiers.v1.types import AssistantMessage, UserMessage

GROUPS_AT_ONCE = 2
PLUGGED = {"tinyrm": {"fn": "tinyrm.integrations.verifiers.score"}}


class Agent:
    """What an environment has of an agent, up to the task's own rewards.

    waiting: what it will write to each prompt.
    """

    def __init__(self, waiting: dict[str, list[Sample]], finished: list[Any]) -> None:
        self.waiting = waiting
        self.finished = finished

    async def run(self, task: Any) -> None:
        sample = self.waiting[task.data.prompt].pop(0)
        await generation(sample)
        prompt = MessageNode(message=UserMessage(content=sample.prompt))
        response = MessageNode(message=AssistantMessage(content=sample.response), parent=0, sampled=True)
        agent = AgentInfo(config=vf.AgentConfig())
        trace = vf.Trace(task=TraceTask(type="Task", data=task.data), agent=agent, nodes=[prompt, response], ok=True)
        await task.score(trace)
        self.finished.append(trace)


class RankedEnv(BestOfNEnv):
    """An environment without a taskset and a harness, which no reward has a part in."""

    def __init__(self, url: str | None, size: int, samples: list[Sample]) -> None:
        self.url = url
        self.config = BestOfNEnvConfig(n=size)
        self.waiting: dict[str, list[Sample]] = {}
        for one in samples:
            self.waiting.setdefault(one.prompt, []).append(one)

    def _episode_agents(self, ctx: Any, completed: list[Any], *_: Any) -> Any:
        return SimpleNamespace(agent=Agent(self.waiting, completed))

    async def finalize(self, task: Any, episode: Any) -> None:
        if self.url:
            await record_group_rewards(episode, self.url)
        await super().finalize(task, episode)


async def main(url: str, groups: int, size: int, *mode: str) -> list[float]:
    os.environ["TINYRM_URL"] = url
    generated = rollout(groups, size, median_s=0.1)
    env = RankedEnv(None if mode else url, size, generated)
    settings = TaskConfig(rewards=PLUGGED if mode else {})
    at_once = asyncio.Semaphore(GROUPS_AT_ONCE)
    rewards: dict[tuple[str, str], float] = {}

    async def run_group(prompt: str) -> None:
        async with at_once:
            episode = await env.run_episode(vf.Task(vf.TaskData(prompt=prompt), settings), None)
        assert episode.ok, episode.errors
        assert any(trace.metrics["best"] for trace in episode.traces)
        for trace in episode.traces:
            rewards[prompt, trace.last_reply] = trace.rewards["tinyrm"].score

    in_order = sorted(generated, key=lambda one: one.group)  # late groups would hold up all others
    await asyncio.gather(*map(run_group, dict.fromkeys(one.prompt for one in in_order)))
    return [rewards[one.prompt, one.response] for one in generated]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))))
