"""AReaL: a workflow that ranks the samples of a prompt with each other."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyrm.integrations import group_rewards, training_client

# The tensors of one sample, each with a first dimension of 1.
Result = dict[str, Any]


def no_reward(*_: Any, **__: Any) -> float:
    """Return 0: the reward function of a workflow whose rewards are all from RankedGroups."""
    return 0.0


@dataclass
class _Group:
    """The samples of a prompt whose generation began at the same time.

    running: how many have not ended yet.
    results: of those that ended well.
    """

    running: int = 0
    results: list[Result] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ranked: asyncio.Task[None] | None = None


class RankedGroups:
    """A base class to put before a workflow of AReaL, such as its RLVRWorkflow:

        class RankedWorkflow(RankedGroups, RLVRWorkflow):
            pass

    AReaL's own reward functions see one sample in a process of their own, and count as 0 when they take longer than 15
    seconds four times, as during a restart of a service. This class waits for the samples of a prompt, which AReaL
    generates at the same time (`gconfig.n_samples`), and adds to the reward of each how good it is among them.

    base_url: address of the service.
    prompt_key: field of the data with the prompt, a text or messages.
    weight: of these rewards; that of `reward_fn` has weight 1, and may be `no_reward`.
    options: of `Client.rewards`: strategy, swap, domain, instruction, model, scale.

    Raises InvalidInput for an address that cannot be used.
    """

    tokenizer: Any

    def __init__(
        self,
        *arguments: Any,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        prompt_key: str = "messages",
        weight: float = 1.0,
        options: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(*arguments, **others)
        self.prompt_key = prompt_key
        self.weight = weight
        self.options = dict(options or {})
        self._client = training_client(base_url, api_key)
        self._beginning: dict[int, _Group] = {}

    async def arun_episode(self, engine: Any, data: dict[str, Any]) -> Result | None:
        """Return the tensors of one sample, with its reward in its group.

        A sample that the workflow rejects, or that fails, does not count, and the others are compared without it.

        Raises CallFailed: a service that restarts or is busy is called again for TIMEOUT_S, and no reward is made up.
        """
        group = self._beginning.setdefault(id(data), _Group())
        group.running += 1
        # AReaL starts all samples of a prompt with the same `data`, before any of them goes on: after this, all are in
        # the group, and a later sample of the same data begins another one.
        try:
            try:
                await asyncio.sleep(0)
            finally:
                self._beginning.pop(id(data), None)
            group.ranked = group.ranked or asyncio.create_task(self._rank(group, data[self.prompt_key]))
            result: Result | None = await super().arun_episode(engine, data)  # type: ignore[misc]  # the workflow's
            if result is not None:
                group.results.append(result)
        finally:
            group.running -= 1
            if not group.running:
                group.ended.set()
        await asyncio.shield(group.ranked)
        return result

    async def _rank(self, group: _Group, prompt: Any) -> None:
        """Add the rewards to the results of a group, as soon as all its samples have ended."""
        await group.ended.wait()
        if not group.results:
            return
        responses = [self._response(result) for result in group.results]
        rewards = await group_rewards(self._client, prompt, responses, self.options)
        for result, reward in zip(group.results, rewards, strict=True):
            result["rewards"] = result["rewards"] + self.weight * reward

    def _response(self, result: Result) -> str:
        """Return what the policy generated: the tokens that count in the loss."""
        ids, mask = result["input_ids"][0].tolist(), result["loss_mask"][0].tolist()
        generated = [token for token, counts in zip(ids, mask, strict=True) if counts]
        text: str = self.tokenizer.decode(generated, skip_special_tokens=True)
        return text
