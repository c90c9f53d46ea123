"""Run two nodes with a replica of the starter on each; tests that break them restore them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="no Ray; `make test` installs it")

from tests.ray.cluster import PATIENCE_S, Cluster, cluster
from tests.support.processes import STARTER, Process

# One replica a node. Without room for a third, an old one leaves before a new one comes.
REPLICAS = {"num_replicas": 2, "max_replicas_per_node": 1, "max_surge_percent": 0}
# A request may wait for another node, which a busy machine starts in minutes; Serve notices the loss of one in 20 s.
SETTINGS = {"engine": "onnxruntime-cpu", "max_wait_s": 2 * PATIENCE_S}


@dataclass
class TwoNodes:
    """The cluster, and its service with the interface that the tests of `python -m service` use."""

    cluster: Cluster
    bundle: Path = STARTER

    def serve(self, bundle: Path = STARTER, **args: object) -> None:
        """Serve this from now on; wait until it is served."""
        self.cluster.deploy({"bundle": str(bundle), "settings": SETTINGS, **args}, **REPLICAS)
        self.cluster.wait_until_running(2)
        self.bundle = bundle

    def heal(self) -> None:
        """Restore two nodes and two replicas of the starter."""
        while len(self.cluster.nodes) < 2:
            self.cluster.add_node()
        if self.bundle != STARTER:
            self.serve()
        self.cluster.wait_until_running(2)

    def check(self) -> None:
        """Wait until two replicas run, whatever they serve. Fails with the log of a node that has left."""
        self.cluster.wait_until_running(2)


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[TwoNodes]:
    with cluster() as running:
        running.start_head(cpus=1)
        running.add_node(cpus=1)
        nodes = TwoNodes(running)
        nodes.serve()
        yield nodes


@pytest.fixture(autouse=True)
def both_run(request: pytest.FixtureRequest) -> None:
    """Begin a test of the two nodes when both have a replica: what took one away is shown before it."""
    if "two_nodes" in request.fixturenames:
        request.getfixturevalue("two_nodes").check()


@pytest.fixture(scope="session")
def service(two_nodes: TwoNodes) -> Iterator[Process]:
    with two_nodes.cluster.client() as client:
        yield Process(two_nodes.cluster.nodes[0], two_nodes.cluster.port, client)
