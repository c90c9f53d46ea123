"""Run every file of examples/ with the command in its first lines, against a live service and without a model hub."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import REPOSITORY
from tests.support.processes import PATIENCE_S, STARTER, Process, started
from tinyrm.tables import read_jsonl

# What each prints when all went well.
PRINTED = {
    "async_rank": r"(?s)Natalia.*clips\.\n.*grandmother",
    "best_of_n": r"^[0-2]: .+\n$",
    "filter_dataset": r"^1 of 2 pairs kept\n0\.\d{3}  'Natalia",
    "trl_grpo": r"step 1: reward_std 0\.\d+, grad_norm \d",
    "verl_reward": r"^(beats the reference 0\.\d{3}  in its group [+-]\d\.\d{3}  .+\n){3}$",
}


@pytest.fixture(scope="module")
def service() -> Iterator[Process]:
    with started(STARTER) as running:
        yield running


def run(example: str, service: Process, folder: Path, *arguments: str) -> str:
    return run_alone(example, folder, "--url", f"http://127.0.0.1:{service.port}", *arguments)


def run_alone(example: str, folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    command = [sys.executable, REPOSITORY / "examples" / f"{example}.py", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_case() -> None:
    without_a_service, with_the_package = (
        ["clean_preferences"],
        ["run_rewardbench"],
    )  # tests/clients/test_rewardbench.py
    here = sorted(file.stem for file in (REPOSITORY / "examples").glob("*.py"))
    assert here == sorted([*PRINTED, *without_a_service, *with_the_package])


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(name, marks=() if name == "filter_dataset" else pytest.mark.slow)
        for name in sorted(PRINTED.keys() - {"trl_grpo"})
    ],
)
def test_an_example_runs_and_prints_its_result(example: str, service: Process, tmp_path: Path) -> None:
    printed = run(example, service, tmp_path)
    assert re.search(PRINTED[example], printed), printed


@pytest.mark.slow
def test_preferences_are_cleaned_without_a_service(tmp_path: Path) -> None:
    """Clean two pairs of which the second is the first with the opposite label."""
    bundle = ("--bundle", str(STARTER))
    kept_all = ("--scores", str(tmp_path / "scores"), "--min-probability", "0")
    printed = run_alone("clean_preferences", tmp_path, *bundle, *kept_all)
    probabilities = pd.read_parquet(tmp_path / "scores").set_index("row")["probability_a"]
    doubted = probabilities.idxmin()
    shown = f"  {probabilities[doubted]:.3f}  row {doubted}  'In May"
    assert printed.startswith(f"1 pairs where the model prefers the rejected response\n{shown}")
    assert printed.endswith("2 of 2 pairs kept in clean.jsonl\n")
    sure = ("--min-probability", "0.5", "--out", "sure.jsonl")
    assert run_alone("clean_preferences", tmp_path, *bundle, *sure).endswith("1 of 2 pairs kept in sure.jsonl\n")
    (kept,) = read_jsonl(tmp_path / "sure.jsonl")
    assert kept["chosen"].endswith("144 clips." if doubted == 0 else "72 clips.")


@pytest.mark.slow
def test_grpo_takes_a_step_with_the_rewards_of_the_service(service: Process, tmp_path: Path) -> None:
    printed = run("trl_grpo", service, tmp_path, "--out", str(tmp_path / "grpo"))
    assert re.search(PRINTED["trl_grpo"], printed), printed
    (file,) = (tmp_path / "grpo" / "completions").glob("*.parquet")
    step = pd.read_parquet(file)
    assert len(step) == 8
    assert np.isfinite(step["tinyrm_reward"]).all()
    for _, group in step.groupby("prompt", sort=False):
        assert len(group) == 4
        assert group["tinyrm_reward"].nunique() > 1
        body = {"prompt": group["prompt"].iloc[0], "responses": [c or " " for c in group["completion"]]}
        expected = service.post("/v1/rewards", body | {"domain": "general"}).json()["rewards"]
        assert list(group["tinyrm_reward"]) == pytest.approx(expected, abs=1e-4)
        assert np.sign(group["advantage"]).tolist() == np.sign(np.subtract(expected, np.mean(expected))).tolist()
    grad_norm = re.search(r"grad_norm (\S+)", printed)
    assert grad_norm
    assert float(grad_norm[1]) > 0
