"""Run a rollout through NeMo-Gym's own simple agent, whose resources server is the service."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import tinyrm
from tests.support.clients import client_packages, run_client
from tests.support.processes import PATIENCE_S, free_port, started
from tests.support.restart import through_a_restart
from tests.support.rollouts import holding, rollout
from tinyrm.ranking import mean_wins

GROUPS, SIZE = 8, 6
SAMPLES = rollout(GROUPS, SIZE, median_s=1.0)
Work = Callable[..., Any]
PACKAGES = (
    "nemo-gym==0.4.0",
    "omegaconf==2.3.0",
    "antlr4-python3-runtime==4.9.3",
    "hydra-core==1.3.2",
    "orjson==3.11.4",
    "itsdangerous==2.2.0",
    "openai==2.7.2",
    "jiter==0.12.0",
    "distro==1.9.0",
    "sniffio==1.3.1",
)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Return a function from the service's port, and the file that holds late samples, to what the agent returns."""
    packages = client_packages(pytestconfig, *PACKAGES, any_python=True)
    path = tmp_path_factory.mktemp("nemo_gym") / "samples.json"
    path.write_text(json.dumps([asdict(sample) for sample in SAMPLES]))

    def run(port: int, stopped: Path | None = None) -> Any:
        return run_client("simple_agent.py", packages, port, free_port(), free_port(), path, **holding(stopped))

    return run


def check(replies: list[Any], bundle: Path) -> int:
    """Check that every reward is that of the whole group, computed offline, and return how many there are."""
    scorer = tinyrm.load(bundle, "onnxruntime-cpu", threads=1)
    grades: dict[str, float] = {}
    for group in range(GROUPS):
        own = [sample for sample in SAMPLES if sample.group == group]
        wins = mean_wins(scorer.rank(own[0].prompt, [sample.response for sample in own]).margins).tolist()
        grades |= {sample.response: 1 + 4 * win for sample, win in zip(own, wins, strict=True)}
    assert max(grades.values()) - min(grades.values()) > 0.01, "rewards all alike would pass for any"
    rewarded = [(sample, reply) for sample, reply in zip(SAMPLES, replies, strict=True) if reply]
    expected = [grades[sample.response] for sample, _ in rewarded]
    assert [reply["reward"] for _, reply in rewarded] == pytest.approx(expected, abs=1e-4)
    assert not any(reply["partial"] for _, reply in rewarded)
    return len(rewarded)


def test_the_simple_agent_gets_the_rewards_of_whole_groups(work: Work, bundle_folder: Path) -> None:
    with started(bundle_folder, dialects="nemo-gym", group_size=SIZE, cohort_timeout_s=PATIENCE_S) as service:
        done = work(service.port)
    assert check(done["replies"], bundle_folder) == GROUPS * SIZE
    assert len(done["aggregated"]["group_level_metrics"]) == GROUPS
    for name, metrics in done["own"].items():
        assert flatten(done["aggregated"][name]) == pytest.approx(flatten(metrics)), name


def test_a_restart_makes_up_no_reward(work: Work, bundle_folder: Path) -> None:
    """NeMo-Gym repeats what meets a closed port, and not what is refused: groups that lack such a sample are, too."""
    settings = {"dialects": "nemo-gym", "group_size": SIZE, "cohort_timeout_s": 5, "partial_cohorts": "refuse"}
    begun_and_one_group = GROUPS * SIZE + SIZE
    done = through_a_restart(bundle_folder, work, after=begun_and_one_group, **settings)
    assert check(done["replies"], bundle_folder) >= SIZE


def flatten(value: object, path: str = "") -> dict[str, object]:
    """Return every number and text of nested objects and lists by its place."""
    if isinstance(value, dict):
        parts = {f"{path}.{key}": part for key, part in value.items()}
    elif isinstance(value, list):
        parts = {f"{path}.{at}": part for at, part in enumerate(value)}
    else:
        return {path: value}
    return {place: leaf for where, part in parts.items() for place, leaf in flatten(part, where).items()}
