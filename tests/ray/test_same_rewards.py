"""Test that each of two replicas returns the rewards of one process; see tests/e2e/test_same_rewards.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_same_rewards import (  # noqa: F401 - the fixtures of one process
    alone,
    flooded,
    one,
    rewards,
    settings_of,
)
from tests.ray.conftest import SETTINGS, TwoNodes
from tests.ray.test_serve import total
from tests.support.processes import Process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def replicas(
    two_nodes: TwoNodes, service: Process, bundle_folder: Path, response_bundle_folder: Path
) -> Iterator[Process]:
    """Serve a model that reads responses, and one that reads pairs, from both replicas."""
    settings = SETTINGS | settings_of(bundle_folder)
    two_nodes.serve(response_bundle_folder, settings=settings)
    yield service
    two_nodes.heal()


def test_rewards_are_the_same_from_each_of_two_replicas(replicas: Process, alone: dict[str, Any]) -> None:  # noqa: F811
    def counted() -> dict[str, float]:
        return total(replicas, "tinyrm_requests_total", endpoint="openrlhf", status="200")

    before = counted()
    with flooded(replicas, clients=2):
        for _ in range(5):
            assert rewards(replicas) == alone
    after = counted()
    assert len([replica for replica in after if after[replica] > before.get(replica, 0)]) == 2, "both were used"


def test_a_sample_for_a_model_that_reads_pairs_is_refused_by_name(replicas: Process) -> None:
    body = {"query": ["Hi there"], "prompts": ["Hi "], "labels": [""]}
    refused = replicas.post("/get_reward?domain=safety", body)
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "not_pointwise")
