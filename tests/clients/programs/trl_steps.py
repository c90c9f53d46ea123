"""Take a step of training with each of TRL's trainers that need rewards, and print what the reward function was given.

    trl_steps.py URL FOLDER

Prints {trainer: {"grad_norm": ..., "calls": [{"prompts": ..., "completions": ..., "rewards": ...}]}}; the last call of
GRPO and of RLOO is an evaluation with another number of completions for each prompt.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from examples.trl_grpo import PROMPTS, toy_policy, toy_tokenizer
from tinyrm.integrations.trl import GroupReward, reward_func

# The last turns of an agent that used a tool.
CALL = {"role": "assistant", "content": "add(2, 2)"}
RESULT = {"role": "tool", "content": "4"}
CONVERSATIONS: list[Any] = [[{"role": "user", "content": prompt}, CALL, RESULT] for prompt in PROMPTS]


class Recorded(GroupReward):
    """The reward function as TRL gets it, with a list of its calls."""

    def __call__(self, prompts: Any, completions: Any, **dataset: Any) -> Any:
        rewards = super().__call__(prompts, completions, **dataset)
        calls.append({"prompts": list(prompts), "completions": completions, "rewards": rewards})
        return rewards


calls: list[dict[str, Any]] = []


def step(trainer: Any, *, evaluates: bool) -> dict[str, Any]:
    calls.clear()
    trainer.train()
    grad_norm = trainer.state.log_history[0]["grad_norm"]
    if evaluates:
        trainer.evaluate()
    return {"grad_norm": grad_norm, "calls": list(calls)}


def main(url: str, folder: str) -> dict[str, Any]:
    logging.disable(logging.WARNING)
    set_seed(0)
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    func = reward_func(url, domain="general", on_failure="raise")
    reward = Recorded(func.client, func.columns, func.options, func.on_failure)
    texts, conversations = (Dataset.from_dict({"prompt": prompts}) for prompts in (PROMPTS, CONVERSATIONS))
    both: dict[str, Any] = {
        "max_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
    }
    group = both | {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12}
    out = Path(folder)
    # RLOO reads its reference model from the path of the policy.
    toy_policy(tokenizer).save_pretrained(out / "policy")
    tokenizer.save_pretrained(out / "policy")
    policy = str(out / "policy")
    grpo = GRPOTrainer(
        model=policy,
        processing_class=tokenizer,
        args=GRPOConfig(output_dir=str(out / "grpo"), num_generations_eval=2, **group),
        train_dataset=conversations,
        eval_dataset=conversations,
        reward_funcs=reward,
    )
    rloo = RLOOTrainer(
        model=policy,
        processing_class=tokenizer,
        args=RLOOConfig(output_dir=str(out / "rloo"), num_generations_eval=1, **group),
        train_dataset=texts,
        eval_dataset=texts,
        reward_funcs=reward,
    )
    dpo = OnlineDPOTrainer(
        model=policy,
        processing_class=tokenizer,
        args=OnlineDPOConfig(output_dir=str(out / "dpo"), max_new_tokens=12, per_device_train_batch_size=4, **both),
        train_dataset=texts,
        reward_funcs=reward,
    )
    return {
        "grpo": step(grpo, evaluates=True),
        "rloo": step(rloo, evaluates=True),
        "online_dpo": step(dpo, evaluates=False),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
