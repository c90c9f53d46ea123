"""Test the reward function for slime, called by slime's own code, through a restart of the service.

TINYRM_SLIME_SOURCE names a folder with slime's source, for a machine that does not reach GitHub.
"""

import io
import os
import shutil
import zipfile
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.clients import run_client
from tests.support.restart import through_a_restart
from tests.support.rollouts import holding, offline_rewards, rollout

COMMIT = "0b420f1ef4161f02d2a00d47c1318eec955a4e2e"
GROUPS, SIZE = 16, 4


@pytest.fixture(scope="module")
def slime(pytestconfig: pytest.Config) -> Path:
    """Return a folder with the package `slime`; skip without GitHub. The package of this name on PyPI is another."""
    if given := os.environ.get("TINYRM_SLIME_SOURCE"):
        return Path(given)
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("clients") / f"slime-{COMMIT}"
    if not folder.exists():
        try:
            reply = httpx.get(f"https://codeload.github.com/THUDM/slime/zip/{COMMIT}", timeout=60)
            reply.raise_for_status()
        except httpx.HTTPError as error:
            pytest.skip(f"slime's source cannot be fetched: {error}")
        unpacked = folder.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
            archive.extractall(unpacked)
        shutil.move(unpacked / f"slime-{COMMIT}", folder)
        shutil.rmtree(unpacked)
    return folder


def work(slime: Path, mode: str, port: int, stopped: Path) -> list[float]:
    url = f"http://127.0.0.1:{port}{'/rm' if mode == 'remote' else ''}"
    rewards: list[float] = run_client("slime_rollout.py", slime, url, mode, GROUPS, SIZE, **holding(stopped))
    return rewards


@pytest.mark.slow
def test_groups_get_the_rewards_of_the_whole_group_through_a_restart(slime: Path, bundle_folder: Path) -> None:
    rewards = through_a_restart(bundle_folder, partial(work, slime, "group"), after=1)
    assert rewards == pytest.approx(offline_rewards(bundle_folder, rollout(GROUPS, SIZE)), abs=1e-4)
    assert len(set(rewards)) > GROUPS


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["single", "remote"])
def test_single_samples_get_the_scores_of_a_model_that_scores_alone(
    slime: Path, response_bundle_folder: Path, mode: str
) -> None:
    asked = partial(work, slime, mode)
    rewards = through_a_restart(response_bundle_folder, asked, after=1, dialects="slime")
    assert rewards == pytest.approx(offline_rewards(response_bundle_folder, rollout(GROUPS, SIZE)), abs=1e-4)
    assert len(set(rewards)) > GROUPS
