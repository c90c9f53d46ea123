"""Test the reward manager for verl, run by verl's own reward loop: workers in several processes of a Ray cluster."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tinyrm
from tests.support.clients import client_packages, run_client
from tests.support.processes import PATIENCE_S, started
from tests.support.restart import through_a_restart
from tests.support.rollouts import Sample, offline_rewards, rollout

PACKAGES = (
    "verl==0.9.1",
    "TransferQueue==0.1.11",
    "tensordict==0.10.0",
    "hydra-core==1.3.8",
    "omegaconf==2.4.0",
    "antlr4-python3-runtime==4.9.3",
    "cachetools==8.0.2",
    "codetiming==1.4.0",
    "msgspec==0.23.0",
    "orjson==3.13.0",
    "pyvers==0.2.3",
    "pyzmq==27.3.0",
    "torchdata==0.11.0",
)
MANAGER = (
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.name=GroupRewardManager",
    "reward.reward_manager.module.path=pkg://tinyrm.integrations.verl_manager",
)
OWN_SCORE = """
def compute_score(data_source, solution_str, ground_truth, extra_info):
    return {"score": 1.0, "characters": float(len(solution_str))}
"""
STREAMED = rollout(16, 4)
# Of 3 workers: 2 samples are added, and groups are split.
PADDED = rollout(5, 8)
ALONE = rollout(4, 4)


@dataclasses.dataclass(frozen=True)
class Got:
    rewards: list[float] = dataclasses.field(default_factory=list)
    extra: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    workers: int = 0
    wall_s: float = 0.0
    error: str = ""


@pytest.fixture(scope="module")
def got(
    pytestconfig: pytest.Config,
    tokenizer_folder: Path,
    bundle_folder: Path,
    response_bundle_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Got]:
    """Return what verl got in each run, all in one cluster. During the last one its service restarts."""
    packages, folder = client_packages(pytestconfig, *PACKAGES), tmp_path_factory.mktemp("verl")
    (folder / "own_score.py").write_text(OWN_SCORE)

    def run(way: str, samples: list[Sample], port: int, *overrides: str, hold: Path | None = None) -> dict[str, Any]:
        url = f"+reward.reward_kwargs.tinyrm.base_url=http://127.0.0.1:{port}"
        settings = [*MANAGER, url, "reward.num_workers=3", *overrides]
        shown = [dataclasses.asdict(sample) for sample in samples]
        return {"way": way, "samples": shown, "overrides": settings, "hold": str(hold) if hold else None}

    def work(alone_port: int, port: int, restarted_port: int, stopped: Path) -> dict[str, Any]:
        runs = {
            "in_process": run("process", ALONE, port),
            "reference": run("process", ALONE, port, "+reward.reward_kwargs.tinyrm.strategy=reference"),
            "starved": run("process", ALONE, port, "reward.num_workers=1", "data.train_batch_size=201"),
            "groups_of_one": run("process", ALONE[:1], port),
            "padded": run(
                "batch",
                PADDED,
                port,
                "+reward.reward_kwargs.max_resp_len=20",
                "+reward.reward_kwargs.overlong_buffer_cfg={enable: true, len: 15, penalty_factor: 0.5, log: true}",
                f"reward.custom_reward_function.path={folder / 'own_score.py'}",
                "+reward.reward_kwargs.tinyrm.weight=2",
            ),
            "validation": run("validation", STREAMED[:8], port, "actor_rollout_ref.rollout.n=4"),
            "alone": run("stream", ALONE, alone_port),
            "streamed": run("stream", STREAMED, restarted_port, hold=stopped),
        }
        (folder / "runs.json").write_text(json.dumps(runs))
        results: dict[str, Any] = run_client(
            "verl_rollout.py", packages, tokenizer_folder, folder / "runs.json", within_s=4 * PATIENCE_S
        )
        return results

    with started(response_bundle_folder) as alone, started(bundle_folder) as steady:
        all_runs = partial(work, alone.port, steady.port)
        results = through_a_restart(bundle_folder, all_runs, after=1, within_s=4 * PATIENCE_S)
    return {name: Got(**result) for name, result in results.items()}


@pytest.mark.slow
def test_samples_in_several_workers_are_judged_as_their_groups_through_a_restart(
    got: dict[str, Got], bundle_folder: Path
) -> None:
    streamed = got["streamed"]
    assert streamed.workers > 1
    assert streamed.rewards == pytest.approx(offline_rewards(bundle_folder, STREAMED), abs=1e-4)
    assert streamed.extra["partial"] == [0] * len(STREAMED)


@pytest.mark.slow
def test_copies_of_padding_change_no_reward_and_penalty_and_own_score_are_added(
    got: dict[str, Got], bundle_folder: Path
) -> None:
    padded, expected = got["padded"], offline_rewards(bundle_folder, PADDED)
    assert padded.workers == 3
    assert padded.extra["tinyrm_reward"] == pytest.approx(expected, abs=1e-4)
    assert padded.extra["partial"] == [0] * len(PADDED)
    assert padded.extra["characters"] == [len(sample.response) for sample in PADDED]
    penalties = padded.extra["overlong_reward"]
    assert min(penalties) < 0
    sums = [1 + 2 * reward + penalty for reward, penalty in zip(expected, penalties, strict=True)]
    assert padded.rewards == pytest.approx(sums, abs=1e-4)


@pytest.mark.slow
def test_validation_with_one_sample_of_each_prompt_waits_for_no_other(got: dict[str, Got]) -> None:
    validation = got["validation"]
    assert validation.rewards == [0] * 8
    assert validation.extra["partial"] == [1] * 8
    assert validation.wall_s < 30


@pytest.mark.slow
def test_a_model_that_scores_alone_scores_each_sample(got: dict[str, Got], response_bundle_folder: Path) -> None:
    assert got["alone"].rewards == pytest.approx(offline_rewards(response_bundle_folder, ALONE), abs=1e-4)
    assert got["alone"].extra["partial"] == [0] * len(ALONE)


@pytest.mark.slow
def test_without_ray_groups_meet_in_the_process(got: dict[str, Got], bundle_folder: Path) -> None:
    assert got["in_process"].rewards == pytest.approx(offline_rewards(bundle_folder, ALONE), abs=1e-4)
    assert got["in_process"].extra["partial"] == [0] * len(ALONE)


@pytest.mark.slow
def test_with_a_reference_each_sample_is_compared_with_its_ground_truth(
    got: dict[str, Got], bundle_folder: Path
) -> None:
    scorer = tinyrm.load(bundle_folder, "onnxruntime-cpu", threads=1)
    expected = [scorer.compare(sample.prompt, sample.response, "4").p_a for sample in ALONE]
    assert got["reference"].rewards == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_settings_with_which_samples_would_wait_for_ever_or_have_no_other_are_refused(got: dict[str, Got]) -> None:
    assert "reward.num_workers=1 is too small for 804 samples" in got["starved"].error
    assert "set it to at least 2" in got["starved"].error
    assert "rollout.n=1" in got["groups_of_one"].error
