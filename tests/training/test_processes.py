"""Test that two processes that share a batch make the step of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import REPOSITORY
from tests.training.conftest import Toy, read_log, weights
from tinyrm.modernbert.checkpoint import load_masked_lm
from training.stages.cloze import train_cloze

# Gradients are summed in another order (within a process, then across), which Adam carries on for a few steps.
TOLERANCE = 1e-5
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
PLAIN = ["--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1", "--main_process_port=0"]


@pytest.mark.slow
def test_two_processes_reach_the_weights_of_one(toy: Toy, tmp_path: Path) -> None:
    batch = {"batch_size": 8, "micro_batch_size": 4, "max_steps": 4}
    alone, shared = (toy.recipe(tmp_path / name, batch, frozen_layers=1) for name in ("alone", "shared"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(shared.model_dump(mode="json")))
    launched = subprocess.run(
        [*LAUNCH, *PLAIN, "-m", "training", str(tmp_path / "recipe.yaml"), "--data", str(toy.data)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr[-3000:]
    train_cloze(alone, toy.data, resume=False)
    one, two = (weights(load_masked_lm(str(recipe.output_dir))) for recipe in (alone, shared))
    start = weights(load_masked_lm(str(toy.base)))
    assert not one["head.dense.weight"].allclose(start["head.dense.weight"], atol=100 * TOLERANCE)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=TOLERANCE, rtol=0)
    accuracies = [read_log(recipe.output_dir)[-1]["eval_accuracy_one_order"] for recipe in (alone, shared)]
    assert accuracies[0] == accuracies[1]
