"""Test the integrations of trainers that call Python: each trainer's own code, through a restart of the service."""

from pathlib import Path

import pytest

from tests.support.clients import client_packages, run_client
from tests.support.restart import through_a_restart
from tests.support.rollouts import holding, offline_rewards, rollout

# Program -> the trainer, with what the path to a reward imports and the environment of the tests lacks.
TRAINERS = {
    "areal": """areal==1.0.4 aiofiles==25.1.0 blinker==1.9.0 einops==0.8.2 flask==3.1.3 hydra-core==1.4.0.dev1
        itsdangerous==2.2.0 jiter==0.19.0 lark==1.3.1 llvmlite==0.50.0 numba==0.68.1 omegaconf==2.4.0.dev2
        openai==3.57.0 orjson==3.13.0 sniffio==1.3.1 tenacity==9.2.1 torchdata==0.11.0""",
    "ms_swift": "ms-swift==4.6.0 dacite==1.9.2 json-repair==0.64.6 modelscope==1.40.2 modelscope-hub==0.5.1",
    "skyrl": "skyrl==0.3.0 skyrl-gym==0.4.0 loguru==0.7.3 omegaconf==2.4.0",
    "verifiers": """verifiers==0.4.0 anthropic==2.14.0 jiter==0.19.0 openai==3.57.0 prime-pydantic-config==0.4.3
        renderers==0.1.12 sniffio==1.3.1 tenacity==9.2.1 tomli-w==1.2.0""",
}
GROUPS, SIZE = 16, 4


def through_a_rollout(config: pytest.Config, model: Path, trainer: str, *mode: str, after: int) -> None:
    """Reward a rollout by the trainer's own code, through a restart, and compare it with rewards without a service."""
    packages = client_packages(config, *TRAINERS[trainer].split())

    def work(port: int, stopped: Path) -> list[float]:
        url = f"http://127.0.0.1:{port}"
        rewards: list[float] = run_client(
            f"{trainer}_rollout.py", packages, url, GROUPS, SIZE, *mode, **holding(stopped)
        )
        return rewards

    rewards = through_a_restart(model, work, after=after)
    assert rewards == pytest.approx(offline_rewards(model, rollout(GROUPS, SIZE, median_s=0.1)), abs=1e-4)
    assert len(set(rewards)) > GROUPS


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_groups_get_their_rewards(pytestconfig: pytest.Config, bundle_folder: Path, trainer: str) -> None:
    through_a_rollout(pytestconfig, bundle_folder, trainer, after=GROUPS // 4)


@pytest.mark.slow
def test_traces_of_verifiers_get_the_scores_of_a_model_that_scores_alone(
    pytestconfig: pytest.Config, response_bundle_folder: Path
) -> None:
    through_a_rollout(pytestconfig, response_bundle_folder, "verifiers", "single", after=GROUPS)
