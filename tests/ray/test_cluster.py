"""The cluster of the other tests starts on a busy machine, too."""

from pathlib import Path

import pytest

from tests.ray import cluster
from tests.ray.cluster import Cluster
from tinyrm.bulk.ray_runner import TOO_SLOW


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Return a cluster whose `ray` leaves with 1, once, if there is a file `reason`, which it prints."""
    ray = tmp_path / "ray"
    ray.write_text(f"#!/bin/sh\ncat {tmp_path}/reason && rm {tmp_path}/reason && exit 1\nexec sleep 60\n")
    ray.chmod(0o755)
    monkeypatch.setattr(cluster, "SCRIPTS", tmp_path)
    return Cluster(tmp_path)


def test_a_node_that_was_too_slow_is_started_again(nodes: Cluster) -> None:
    (nodes.folder / "reason").write_text(f"Exception: {TOO_SLOW}. This could happen because ...")
    first = nodes.add_node()
    first.wait()
    nodes.wait(lambda: nodes.nodes[0].poll() is None, "no node")
    assert nodes.nodes[0] is not first
    assert nodes.nodes[0].args == first.args
    nodes.close()


def test_a_node_that_leaves_for_another_reason_fails_the_test(nodes: Cluster) -> None:
    (nodes.folder / "reason").write_text("Address already in use")
    nodes.add_node().wait()
    with pytest.raises(AssertionError, match=r"a node left with 1: node-0.log:\nAddress already in use"):
        nodes.wait(lambda: True, "no node")
