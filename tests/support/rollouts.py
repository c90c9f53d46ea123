"""The samples of one step of a training, in the order in which their generation ends, and the rewards they must get."""

import asyncio
import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tinyrm
from tinyrm.bundle import read_manifest

# In the environment of a client: the file without which the generation of late samples does not end.
HOLD = "ROLLOUT_HELD_UNTIL"


@dataclass(frozen=True)
class Sample:
    """A response, and the seconds after which its generation ends.

    is_late: whether its group is in the second half; see `generation`.
    """

    group: int
    prompt: str
    response: str
    after_s: float
    is_late: bool = False


def rollout(
    groups: int = 64, size: int = 8, *, seed: int = 0, median_s: float = 0.5, sigma: float = 0.8
) -> list[Sample]:
    """Return the samples of `groups` prompts, in the order in which they end.

    The times are lognormal, as those of generations are: of 512 samples with these defaults, half end within 0.5 s
    and the last within 4 s. No two prompts and no two responses of a prompt are equal.
    """
    draw = random.Random(seed)
    samples = [
        Sample(
            group,
            f"What is {group} + {group}?",
            f"{group} + {group} = {2 * group + off}." + " I am sure." * (off % 3),
            draw.lognormvariate(math.log(median_s), sigma),
            is_late=group >= (groups + 1) // 2,
        )
        for group in range(groups)
        for off in range(size)
    ]
    return sorted(samples, key=lambda sample: sample.after_s)


def holding(until: Path | None) -> dict[str, str]:
    """Return what the environment of a client must have for late samples to wait for this file."""
    return {HOLD: str(until)} if until else {}


async def generation(sample: Sample, hold: str | None = None) -> None:
    """Wait until the generation of a sample ends.

    hold: a file without which that of a late sample does not end, such as that of the restart of a service
        (tests/support/restart.py). Default: the one that HOLD names in the environment, if it does.
    """
    await asyncio.sleep(sample.after_s)
    hold = hold or os.environ.get(HOLD)
    while sample.is_late and hold and not Path(hold).exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.05)


def offline_rewards(bundle: Path, samples: Sequence[Sample]) -> list[float]:
    """Return the reward of each sample, computed in this process from the whole rollout.

    A model that scores responses alone gives each the score of `/v1/score`; any other one its strength in its group,
    with mean 0.
    """
    scorer = tinyrm.load(bundle, "onnxruntime-cpu", threads=1)
    manifest = read_manifest(bundle)
    scale = manifest.score_scale
    rewards: dict[tuple[int, str], float] = {}
    for group in sorted({sample.group for sample in samples}):
        own = [sample for sample in samples if sample.group == group]
        responses = [sample.response for sample in own]
        if manifest.head.scores_alone:
            logits = scorer.score_responses(own[0].prompt, responses).tolist()
            values = [scale.standardise(logit) for logit in logits] if scale else logits
        else:
            values = scorer.rank(own[0].prompt, responses).strengths.values.tolist()
        rewards |= {(group, sample.response): value for sample, value in zip(own, values, strict=True)}
    return [rewards[sample.group, sample.response] for sample in samples]
