"""Reward a rollout by OpenRLHF's own `SingleTurnAgentExecutor`, and print the rewards in the order of the samples.

    openrlhf_rollout.py URL GROUPS SIZE [LABEL]

OpenRLHF is on the path. Its package is not imported as a whole, which would need vllm and deepspeed: only the module of
the executor, with an engine and a tokenizer that know the texts of the rollout. A reward is None after OpenRLHF has
given up.
"""

import asyncio
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from tests.support.rollouts import Sample, generation, rollout

PROMPT, RESPONSE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>"


class Characters:
    """A tokenizer whose tokens are the characters."""

    def __call__(self, text: str, **_: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[ord(character) for character in text]])}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))


@dataclass
class Generated:
    """An engine that generates one known response, in its time."""

    sample: Sample

    async def generate(self, *_: Any, **__: Any) -> Any:
        await generation(self.sample)
        ids = [ord(character) for character in RESPONSE.format(self.sample.response)]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)])


def bare_package(name: str) -> None:
    """Let modules of a package be imported without the package's own code."""
    spec = find_spec(name)
    assert spec
    package = ModuleType(name)
    package.__path__ = spec.submodule_search_locations or []
    sys.modules[name] = package


async def main(url: str, groups: int, size: int, label: str = "") -> list[dict[str, Any]]:
    bare_package("openrlhf")
    bare_package("openrlhf.utils")
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    executor = SingleTurnAgentExecutor(url)
    parameters = SimpleNamespace(max_tokens=512, logprobs=None)
    outputs = await asyncio.gather(
        *(
            executor.execute(PROMPT.format(one.prompt), label, parameters, 4096, Characters(), Generated(one))
            for one in rollout(groups, size)
        )
    )
    return [{name: output[name] for name in ("reward", "scores", "extra_logs")} for output in outputs]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))))
