"""Reward a rollout by SkyRL's own generator, a step of a training at a time, and print the rewards in its order.

    skyrl_rollout.py URL GROUPS SIZE

The inference engine is replaced by one that returns the rollout's responses after their times, and the tokenizer by one
of bytes.
"""

# ruff: noqa: E402 - one line must come before what imports SkyRL

import asyncio
import json
import sys
import typing
from typing import Any

import typing_extensions

typing.TypedDict = typing_extensions.TypedDict  # pydantic refuses Python's own before 3.12, and so SkyRL's bodies

import skyrl_gym
from skyrl.train.config import GeneratorConfig, SkyRLGymConfig
from skyrl.train.generators.skyrl_gym_generator import SkyRLGymGenerator
from skyrl.train.generators.utils import prepare_generator_input
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from tests.support.rollouts import Sample, generation, rollout
from tinyrm.integrations.skyrl import RankedGenerator

EOS = 256
GROUPS_OF_A_STEP = 2


class OneTurn(BaseTextEnv):
    """An environment that ends after one response, without a reward of its own."""

    def __init__(self, env_config: Any = None, extras: Any = None) -> None:
        super().__init__()

    def step(self, action: str) -> BaseTextEnvStepOutput:
        return BaseTextEnvStepOutput(observations=[], reward=0.0, done=True, metadata={})


class Bytes:
    """A tokenizer whose tokens are bytes, and an end."""

    eos_token, eos_token_id = "<eos>", EOS

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        return bytes(token for token in token_ids if token != EOS).decode()

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> list[int]:
        return self.encode("".join(f"{turn['role']}: {turn['content']}\n" for turn in messages))


class Engine:
    """An inference engine that knows what it will generate to each prompt."""

    def __init__(self, samples: list[Sample]) -> None:
        self.waiting: dict[str, list[Sample]] = {}
        for one in samples:
            self.waiting.setdefault(one.prompt, []).append(one)

    async def generate(self, batch: Any, model: Any = None) -> dict[str, Any]:
        (ids,) = batch["prompt_token_ids"]
        prompt = bytes(ids).decode().removeprefix("user: ").removesuffix("\n")
        sample = self.waiting[prompt].pop(0)
        await generation(sample)
        response = [*sample.response.encode(), EOS]
        return {"responses": [sample.response], "response_ids": [response], "stop_reasons": ["stop"]}

    async def finish_session(self, _: str) -> None:
        pass


async def main(url: str, groups: int, size: int) -> list[float]:
    skyrl_gym.register("one-turn", OneTurn)
    generated = rollout(groups, size, median_s=0.1)
    settings = GeneratorConfig(max_input_length=1000)
    settings.sampling_params.logprobs = None
    own = SkyRLGymGenerator(settings, SkyRLGymConfig(), Engine(generated), Bytes())
    generator = RankedGenerator(own, url)
    rewards: dict[tuple[str, str], float] = {}
    for first in range(0, groups, GROUPS_OF_A_STEP):
        prompts = dict.fromkeys(one.prompt for one in generated if 0 <= one.group - first < GROUPS_OF_A_STEP)
        rows = [
            {"prompt": [{"role": "user", "content": text}], "env_class": None, "env_extras": {}, "uid": text}
            for text in prompts
        ]
        batch, uids = prepare_generator_input(rows, size, None, "one-turn", "train", first)  # as the trainer does
        output = await generator.generate(batch, disable_tqdm=True)
        for prompt, ids, reward in zip(uids, output["response_ids"], output["rewards"], strict=True):
            rewards[prompt, Bytes().decode(ids, skip_special_tokens=True)] = sum(reward)
    return [rewards[one.prompt, one.response] for one in generated]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
