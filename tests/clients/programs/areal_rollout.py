"""Reward a rollout by AReaL's own workflows, as many groups at a time as a training has, and print its rewards.

    areal_rollout.py URL GROUPS SIZE

The inference engine is replaced by one that returns the rollout's responses after their times, and the tokenizer by one
of bytes.
"""

import asyncio
import json
import logging
import sys
from typing import Any

from areal.api import ModelResponse, RolloutWorkflow
from areal.api.cli_args import GenerationHyperparameters
from areal.infra.remote_inf_engine import GroupedRolloutWorkflow
from areal.workflow.rlvr import RLVRWorkflow

from tests.support.rollouts import Sample, generation, rollout
from tinyrm.integrations.areal import RankedGroups

EOS = 256
GROUPS_AT_ONCE = 2


class RankedWorkflow(RankedGroups, RLVRWorkflow):
    pass


class Bytes:
    """A tokenizer whose tokens are bytes, and an end."""

    eos_token_id = pad_token_id = EOS

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return bytes(token for token in token_ids if token != EOS).decode()


def input_ids(messages: list[dict[str, str]], *_: Any) -> list[int]:
    return list(messages[0]["content"].encode())


class Engine:
    """An inference engine that knows what it will generate to each prompt."""

    def __init__(self, samples: list[Sample]) -> None:
        self.waiting: dict[str, list[Sample]] = {}
        for one in samples:
            self.waiting.setdefault(one.prompt, []).append(one)

    async def agenerate(self, request: Any) -> ModelResponse:
        sample = self.waiting[bytes(request.input_ids).decode()].pop(0)
        await generation(sample)
        tokens = [*sample.response.encode(), EOS]
        zeros = [0.0] * len(tokens)
        return ModelResponse(
            input_tokens=request.input_ids,
            output_tokens=tokens,
            output_logprobs=zeros,
            output_versions=[0] * len(tokens),
        )


async def main(url: str, groups: int, size: int) -> list[float]:
    generated = rollout(groups, size, median_s=0.1)
    engine, at_once = Engine(generated), asyncio.Semaphore(GROUPS_AT_ONCE)
    workflow = RankedWorkflow(
        "tinyrm.integrations.areal.no_reward",
        GenerationHyperparameters(n_samples=size),
        Bytes(),
        get_input_ids_fn=input_ids,
        base_url=url,
    )
    assert isinstance(workflow, RolloutWorkflow)
    # What AReaL makes of a workflow and `gconfig.n_samples`.
    grouped = GroupedRolloutWorkflow(workflow, size, logging.getLogger())
    rewards: dict[tuple[str, str], float] = {}

    async def run_group(prompt: str) -> None:
        async with at_once:
            tensors = await grouped.arun_episode(engine, {"messages": [{"role": "user", "content": prompt}]})
        assert tensors is not None
        assert len(tensors["rewards"]) == size
        for ids, mask, reward in zip(tensors["input_ids"], tensors["loss_mask"], tensors["rewards"], strict=True):
            rewards[prompt, Bytes().decode(ids[mask == 1].tolist())] = reward.item()

    in_order = sorted(generated, key=lambda one: one.group)  # late groups would hold up all others
    await asyncio.gather(*map(run_group, dict.fromkeys(one.prompt for one in in_order)))
    return [rewards[one.prompt, one.response] for one in generated]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
