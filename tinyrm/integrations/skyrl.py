"""SkyRL: a generator that adds to the rewards of the environment how good each response is in its group."""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from tinyrm.integrations import group_rewards, training_client


class Tokenizer(Protocol):
    """What is called of a tokenizer of `transformers`."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class Generator(Protocol):
    """What is called of SkyRL's `SkyRLGymGenerator`."""

    tokenizer: Tokenizer

    async def generate(self, input_batch: Any, disable_tqdm: bool = False) -> Any: ...


class RankedGenerator:
    """A generator around SkyRL's own, for `get_generator` of an experiment.

        class Experiment(BasePPOExp):
            def get_generator(self, cfg, tokenizer, inference_engine_client):
                generator = super().get_generator(cfg, tokenizer, inference_engine_client)
                return RankedGenerator(generator, "http://127.0.0.1:8000")

    SkyRL passes all samples of a prompt in one batch, so that each is compared with the others in one call. An
    environment rewards one sample at a time, in one of 32 threads, and could not wait for the others.

    weight: of these rewards; those of the environment have weight 1.
    options: of `Client.rewards`: strategy, swap, domain, instruction, model, scale.

    Raises InvalidInput for an address that cannot be used.
    """

    def __init__(
        self,
        generator: Generator,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        weight: float = 1.0,
        **options: Any,
    ) -> None:
        self.generator = generator
        self.weight = weight
        self.options = options
        self._client = training_client(base_url, api_key)

    async def generate(self, input_batch: Any, disable_tqdm: bool = False) -> Any:
        """Generate, and add the reward of each trajectory at its last token.

        A response is what was generated of its trajectory, as text without special tokens, with what the environment
        replied between its turns. The prompt is the batch's.

        Raises CallFailed: a service that restarts or is busy is called again for TIMEOUT_S, and no reward is made up.
        """
        output = await self.generator.generate(input_batch, disable_tqdm)
        ids = input_batch["trajectory_ids"]
        names = [(one.instance_id, one.repetition_id) for one in ids]
        # Step-wise training has several rows for a trajectory.
        row_names = [(one.instance_id, one.repetition_id) for one in output.get("trajectory_ids") or ids]
        rows: dict[Any, list[int]] = {name: [] for name in names}
        for row, name in enumerate(row_names):
            rows[name].append(row)
        prompts = {name[0]: prompt for name, prompt in zip(names, input_batch["prompts"], strict=True)}

        async def reward_group(instance: Any) -> None:
            trajectories = [rows[name] for name in names if name[0] == instance]
            texts = ["".join(map(self._decode, (output["response_ids"][row] for row in own))) for own in trajectories]
            rewards = await group_rewards(self._client, prompts[instance], texts, self.options)
            for own, reward in zip(trajectories, rewards, strict=True):
                self._add(output["rewards"], own[-1], reward)

        await asyncio.gather(*map(reward_group, prompts))
        return output

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.generator.tokenizer.decode(token_ids, skip_special_tokens=True)

    def _add(self, rewards: list[Any], row: int, reward: float) -> None:
        """Add to a reward, which SkyRL holds as one number, or as one for each token."""
        if isinstance(rewards[row], list):
            rewards[row][-1] += self.weight * reward
        else:
            rewards[row] += self.weight * reward
