"""Test the rewards that OpenRLHF's own executor gets for a rollout, also through a restart of the service."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.service.test_auth import entry, write
from tests.support.clients import client_packages, run_client
from tests.support.processes import PATIENCE_S, started
from tests.support.restart import through_a_restart
from tests.support.rollouts import holding, offline_rewards, rollout

GROUPS, SIZE = 16, 4
# OpenRLHF tries five times in some five seconds, in which a busy machine may not have started the service.
RESTART: dict[str, Any] = {"after": GROUPS, "down_s": 0, "gives_up": True}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def openrlhf(pytestconfig: pytest.Config) -> Path:
    return client_packages(pytestconfig, "openrlhf==0.11.2")


def work(packages: Path, query: str, port: int, stopped: Path | None = None, login: str = "") -> list[dict[str, Any]]:
    """Return what the executor returns for each sample. The label is a number to check, as in OpenRLHF's data."""
    url = f"http://{login}127.0.0.1:{port}/get_reward{query}"
    outputs: list[dict[str, Any]] = run_client(
        "openrlhf_rollout.py", packages, url, GROUPS, SIZE, "4", **holding(stopped)
    )
    return outputs


def check(outputs: list[dict[str, Any]], bundle: Path) -> int:
    """Check that no reward was made up, and return how many samples have one.

    Each is that of the whole group, and not partial; or None, after OpenRLHF has given up.
    """
    expected = offline_rewards(bundle, rollout(GROUPS, SIZE))
    rewarded = [(output, reward) for output, reward in zip(outputs, expected, strict=True) if output["reward"]]
    assert [output["reward"][0] for output, _ in rewarded] == pytest.approx(
        [reward for _, reward in rewarded], abs=1e-4
    )
    assert {output["extra_logs"]["partial"][0] for output, _ in rewarded} == {0.0}
    assert all(0 <= output["scores"][0] <= 1 for output, _ in rewarded)
    return len(rewarded)


def test_every_sample_gets_the_reward_of_its_whole_group(openrlhf: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """Send the key as the password of the address: OpenRLHF has no option for one."""
    keys = write(tmp_path / "keys.json", entry("trainer", "tinyrm_key-of_1"))
    settings = {"dialects": "openrlhf", "group_size": SIZE, "cohort_timeout_s": PATIENCE_S, "api_keys_file": keys}
    with started(bundle_folder, **settings) as service:
        assert service.post("/get_reward", {"query": [], "prompts": []}).status_code == 401
        outputs = work(openrlhf, "", service.port, login="any:tinyrm_key-of_1@")
    assert check(outputs, bundle_folder) == GROUPS * SIZE
    assert len({output["reward"][0] for output in outputs}) > GROUPS


def test_a_restart_makes_up_no_reward(openrlhf: Path, bundle_folder: Path) -> None:
    """Refuse groups that lack samples which OpenRLHF has given up."""
    settings = {"dialects": "openrlhf", "group_size": SIZE, "cohort_timeout_s": 5}
    asked = partial(work, openrlhf, "?partial=refuse")
    assert check(through_a_restart(bundle_folder, asked, **RESTART, **settings), bundle_folder) >= GROUPS


def test_a_model_that_scores_alone_scores_single_samples_also_through_a_restart(
    openrlhf: Path, response_bundle_folder: Path
) -> None:
    settings = {"dialects": "openrlhf", "workers": 2}
    outputs = through_a_restart(response_bundle_folder, partial(work, openrlhf, ""), **RESTART, **settings)
    assert check(outputs, response_bundle_folder) >= GROUPS
