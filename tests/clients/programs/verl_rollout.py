"""Reward samples by verl's own reward loop in a Ray cluster of this machine, and print what verl got.

    verl_rollout.py TOKENIZER RUNS

RUNS is a JSON file of {name: {"way": ..., "samples": [...], "overrides": [...], "hold": ...}}, with samples and hold as
in tests/support/rollouts.py. Overrides are those of verl's command line. The ways are:

stream: each sample when its generation ends, in a random worker, as verl's agent loop sends it.
validation: the same, and verl's TransferQueue holds the prompts as those of validation.
batch: all samples by `RewardLoopManager.compute_rm_score`, which pads and splits the batch.
process: all samples by a reward manager in this process. Runs of this way come first: the others start a cluster.

Prints {name: {"rewards": ..., "extra": {...}, "workers": ..., "wall_s": ...}}; workers are those that got samples. A
run of the last way that fails has {"error": ...} only.
"""

import asyncio
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import numpy as np
import ray
import torch
import verl.trainer
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, AgentLoopWorker
from verl.experimental.reward_loop import RewardLoopManager, migrate_legacy_reward_impl
from verl.trainer.ppo.reward import load_reward_manager

from tests.support.rollouts import generation
from tinyrm.errors import TinyRMError


class Handle:
    """A worker's handle that notes that it was used."""

    def __init__(self, handle: Any) -> None:
        self.was_used = False
        self.compute_score = SimpleNamespace(remote=lambda data: self._remote(handle, data))

    def _remote(self, handle: Any, data: DataProto) -> Any:
        self.was_used = True
        return handle.compute_score.remote(data)


def fields(sample: SimpleNamespace) -> dict[str, Any]:
    """Return what verl's data set and trainer know of a sample."""
    return {
        "uid": sample.uid,
        "raw_prompt": [{"role": "user", "content": sample.prompt}],
        "data_source": "sums",
        "reward_model": {"style": "model", "ground_truth": "4"},
        "extra_info": {"index": sample.group},
    }


async def stream(manager: RewardLoopManager, samples: list[Any], tokenizer: Any, hold: str | None) -> dict[str, Any]:
    handles = [Handle(handle) for handle in manager.reward_loop_worker_handles]
    # What verl's method needs of its object, without models and processors.
    agent = SimpleNamespace(
        reward_loop_worker_handles=handles,
        _compute_multi_modal_inputs=lambda *_: {},
        _compute_position_ids=lambda ids, *_: torch.arange(ids.shape[-1]).unsqueeze(0),
        _get_mm_processor_kwargs=lambda *_: {},
    )

    async def run(sample: Any) -> AgentLoopOutput:
        await generation(sample, hold)
        response = tokenizer.encode(sample.response)
        output = AgentLoopOutput(
            prompt_ids=tokenizer.encode(sample.prompt),
            response_ids=response,
            response_mask=[1] * len(response),
            num_turns=2,
            metrics=AgentLoopMetrics(),
        )
        await AgentLoopWorker._compute_score(agent, [output], kwargs=fields(sample))
        return output

    outputs = await asyncio.gather(*map(run, samples))
    extra = [output.extra_fields["reward_extra_info"] for output in outputs]
    return {
        "rewards": [output.reward_score for output in outputs],
        "extra": {key: [info[key] for info in extra] for key in extra[0]},
        "workers": sum(handle.was_used for handle in handles),
    }


def to_data(samples: list[SimpleNamespace], tokenizer: Any) -> DataProto:
    def padded(texts: list[str], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    prompts, prompt_mask = padded([sample.prompt for sample in samples], "left")
    responses, response_mask = padded([sample.response for sample in samples], "right")
    mask = torch.cat([prompt_mask, response_mask], dim=1)
    tensors = {"prompts": prompts, "responses": responses, "attention_mask": mask}
    columns: dict[str, Any] = {}
    for name in fields(samples[0]):
        columns[name] = np.empty(len(samples), dtype=object)
        columns[name][:] = [fields(sample)[name] for sample in samples]
    return DataProto(TensorDict(tensors, batch_size=len(samples)), columns)


def batch(manager: RewardLoopManager, samples: list[SimpleNamespace], tokenizer: Any) -> dict[str, Any]:
    scored = manager.compute_rm_score(to_data(samples, tokenizer))
    return {
        "rewards": scored.batch["rm_scores"].sum(dim=1).tolist(),
        "extra": {key: scored.non_tensor_batch[key].tolist() for key in scored.meta_info["reward_extra_keys"]},
        "workers": len(manager.reward_loop_workers),
    }


async def in_process(config: Any, samples: list[SimpleNamespace], tokenizer: Any) -> dict[str, Any]:
    data, began = to_data(samples, tokenizer), time.perf_counter()
    try:
        manager = load_reward_manager(config, tokenizer)
        results = await asyncio.gather(*(manager.run_single(data[i : i + 1]) for i in range(len(data))))
    except TinyRMError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    extra = [result["reward_extra_info"] for result in results]
    return {
        "rewards": [result["reward_score"] for result in results],
        "extra": {key: [info[key] for info in extra] for key in extra[0]},
        "workers": 1,
        "wall_s": time.perf_counter() - began,
    }


def start_cluster() -> None:
    """Start Ray unless it runs. Its own limit of 30 s is short on a busy machine, so it has three tries."""
    for tries_left in (2, 1, 0):
        if ray.is_initialized():
            return
        try:
            ray.init(num_cpus=8, include_dashboard=False, object_store_memory=100 * 2**20)
        except Exception as error:
            if not tries_left or "timed out during startup" not in str(error):
                raise


def reward(name: str, run: dict[str, Any], tokenizer_folder: str) -> dict[str, Any]:
    samples = [SimpleNamespace(**sample, uid=f"{name}-{sample['group']}") for sample in run["samples"]]
    uids = sorted({sample.uid for sample in samples})
    own = [
        f"actor_rollout_ref.model.path={tokenizer_folder}",
        f"actor_rollout_ref.rollout.n={len(samples) // len(uids)}",
        f"data.train_batch_size={len(uids)}",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    ]
    with hydra.initialize_config_dir(str(Path(verl.trainer.__path__[0]) / "config"), version_base=None):
        config = migrate_legacy_reward_impl(hydra.compose("ppo_trainer", [*own, *run["overrides"]]))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if run["way"] == "process":
        return asyncio.run(in_process(config, samples, tokenizer))
    start_cluster()
    if run["way"] == "validation":
        import transfer_queue

        config.transfer_queue.enable = True
        transfer_queue.init(config.transfer_queue)
        transfer_queue.kv_batch_put(uids, "val", tags=[{"is_prompt": True, "status": "pending"} for _ in uids])
    manager = RewardLoopManager(config)
    ray.get([worker.__ray_ready__.remote() for worker in manager.reward_loop_workers])
    began = time.perf_counter()
    got = (
        batch(manager, samples, tokenizer)
        if run["way"] == "batch"
        else asyncio.run(stream(manager, samples, tokenizer, run["hold"]))
    )
    got["wall_s"] = time.perf_counter() - began
    for index, worker in enumerate(manager.reward_loop_workers):
        ray.kill(worker)
        with suppress(ValueError):  # the next manager's workers have the same names
            while ray.get_actor(f"reward_loop_worker_{index}"):
                time.sleep(0.05)
    return got


def main(tokenizer_folder: str, runs_file: str) -> dict[str, Any]:
    try:
        runs = json.loads(Path(runs_file).read_text())
        return {name: reward(name, run, tokenizer_folder) for name, run in runs.items()}
    finally:
        ray.shutdown()


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
