"""Reward a rollout by ms-swift's own code, a step of a training at a time, and print the rewards in its order.

ms_swift_rollout.py URL GROUPS SIZE
"""

import asyncio
import json
import sys
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from swift.rewards import orms
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import score_completions
from swift.utils import import_external_file

from tests.support.rollouts import Sample, generation, rollout

PLUGIN = """
from swift.rewards import orms
from tinyrm.integrations.ms_swift import orm

orms["tinyrm"] = orm({url!r})
"""
GROUPS_OF_A_STEP = 2


async def generated_all(samples: list[Sample]) -> None:
    await asyncio.gather(*map(generation, samples))


def main(url: str, groups: int, size: int) -> list[float]:
    with TemporaryDirectory() as folder:
        plugin = Path(folder, "plugin.py")
        plugin.write_text(PLUGIN.format(url=url))
        import_external_file(str(plugin))  # as `--external_plugins` does
    # As GRPOTrainer does with `--reward_funcs tinyrm`.
    reward = orms["tinyrm"](args=Namespace(num_generations=size))
    generated = rollout(groups, size, median_s=0.1)
    rewards: dict[int, float] = {}
    for first in range(0, groups, GROUPS_OF_A_STEP):
        rows = [row for row, one in enumerate(generated) if 0 <= one.group - first < GROUPS_OF_A_STEP]
        asyncio.run(generated_all([generated[row] for row in rows]))
        samples = [
            GRPOSample(
                messages=[
                    {"role": "user", "content": generated[row].prompt},
                    {"role": "assistant", "content": generated[row].response},
                ],
                prompt_id=f"prompt_{generated[row].group}",
            )
            for row in rows
        ]
        scored = score_completions(samples, [reward], [None], use_gym_env=False, device=torch.device("cpu"))
        rewards |= dict(zip(rows, scored[:, 0].tolist(), strict=True))
    return [rewards[row] for row in range(len(generated))]


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
