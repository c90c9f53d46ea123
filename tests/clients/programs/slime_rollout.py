"""Reward a rollout by slime's own `rm_hub`, and print the rewards in the order of the samples.

    slime_rollout.py URL group|single|remote GROUPS SIZE

remote: by slime's `remote_rm`, one sample a request; otherwise by the integration.

slime's source is on the path. Its rule-based rewards are replaced by nothing: what they import is not installed, and
`--custom-rm-path` does not use them.
"""

import asyncio
import json
import sys
from argparse import Namespace
from typing import Any

from tests.support.absent import import_as_nothing
from tests.support.rollouts import generation, rollout

CUSTOM_RM_PATH = "tinyrm.integrations.slime.reward"
# As `--apply-chat-template` writes a prompt, and as SGLang returns a response.
PROMPT, RESPONSE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>"


async def main(url: str, mode: str, groups: int, size: int) -> list[float]:
    import_as_nothing("slime.rollout.rm_hub.")
    from slime.rollout.rm_hub import async_rm, batched_async_rm
    from slime.utils.types import Sample

    custom = None if mode == "remote" else CUSTOM_RM_PATH
    args = Namespace(rm_url=url, rm_type="remote_rm", custom_rm_path=custom, group_rm=mode == "group")
    generated = rollout(groups, size)
    samples = [
        Sample(index=index, prompt=PROMPT.format(one.prompt), response=RESPONSE.format(one.response))
        for index, one in enumerate(generated)
    ]

    async def generate_and_rm(index: int) -> None:
        await generation(generated[index])
        if not args.group_rm:
            samples[index].reward = await async_rm(args, samples[index])

    async def generate_and_rm_group(group: int) -> None:
        """As slime's function of this name does, after the generation of the last sample."""
        indices = [index for index, one in enumerate(generated) if one.group == group]
        await asyncio.gather(*map(generate_and_rm, indices))
        if args.group_rm:
            own = [samples[index] for index in indices]
            for sample, reward in zip(own, await batched_async_rm(args, own), strict=True):
                sample.reward = reward

    await asyncio.gather(*map(generate_and_rm_group, range(groups)))
    rewards: list[Any] = [sample.reward for sample in samples]
    return rewards


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))
