"""verifiers and prime-rl: rewards of whole groups in `Env.finalize`, and a reward function for single traces."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tinyrm.chat import to_prompt, to_response
from tinyrm.errors import CallRefused
from tinyrm.integrations import group_rewards, score_alone, training_client

Turns = list[Mapping[str, Any]]


class Message(Protocol):
    """A message of verifiers."""

    def model_dump(self, *, exclude_none: bool) -> dict[str, Any]: ...


class Node(Protocol):
    """A message of a trace; `sampled` if the policy wrote it."""

    message: Message
    sampled: bool


class Branch(Protocol):
    nodes: Sequence[Node]


class Trace(Protocol):
    """What is read of a trace."""

    @property
    def branches(self) -> Sequence[Branch]: ...
    @property
    def ok(self) -> bool: ...
    def record_reward(self, name: str, value: float, weight: float) -> None: ...


class Episode(Protocol):
    """What is read of an episode."""

    @property
    def traces(self) -> Sequence[Trace]: ...


async def record_group_rewards(
    episode: Episode,
    base_url: str = "http://127.0.0.1:8000",
    *,
    api_key: str | None = None,
    name: str = "tinyrm",
    weight: float = 1.0,
    **options: Any,
) -> None:
    """Record a reward on each trace of an episode, compared with the others: for `finalize` of an environment.

        class RankedEnv(BestOfNEnv):
            async def finalize(self, task, episode):
                await record_group_rewards(episode, "http://127.0.0.1:8000")
                await super().finalize(task, episode)

    The traces must begin with the same prompt. What follows it, turns of tools among it, is the response. A trace that
    failed gets no reward, and the others are compared without it.

    name: of the reward in the trace.
    options: of `Client.rewards`: strategy, swap, domain, instruction, model, scale.

    Raises CallFailed, on which the episode fails and may be run again: a service that restarts or is busy is called
    again for TIMEOUT_S before, and no reward is made up.
    """
    traces = [trace for trace in episode.traces if trace.ok]
    if not traces:
        return
    prompt, _ = _split(traces[0])
    responses = [_split(trace)[1] for trace in traces]
    rewards = await group_rewards(training_client(base_url, api_key), prompt, responses, options)
    for trace, reward in zip(traces, rewards, strict=True):
        trace.record_reward(name, reward, weight)


async def score(trace: Trace) -> float:
    """Return the score of one trace, which needs a model that scores responses alone (`scores_alone`).

    A reward function that needs no code: `--env.taskset.task.rewards.tinyrm.fn tinyrm.integrations.verifiers.score`.

    The variables TINYRM_URL and TINYRM_API_KEY are the address of the service and its key. Raises CallFailed, as
    `record_group_rewards` does.
    """
    client = training_client(os.environ.get("TINYRM_URL", "http://127.0.0.1:8000"), os.environ.get("TINYRM_API_KEY"))
    prompt, response = _split(trace)
    try:
        return await score_alone(client, to_prompt(prompt), to_response(response), {})
    except CallRefused as error:
        if error.type == "not_pointwise":
            error.add_note(
                "record_group_rewards, in `finalize` of an environment, is for models that compare responses"
            )
        raise


def _split(trace: Trace) -> tuple[Turns, Turns]:
    """Return the messages of a trace before the first one of the policy, and those from there on."""
    nodes = trace.branches[-1].nodes if trace.branches else []
    turns: Turns = [node.message.model_dump(exclude_none=True) for node in nodes]
    first = next((index for index, node in enumerate(nodes) if node.sampled), len(nodes))
    return turns[:first], turns[first:]
