"""Test that two Ray nodes with a replica each return the results of `python -m service`, bit for bit."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtests.payloads import synthetic
from tests.e2e.test_client import (  # noqa: F401 - the tests of the service, on this one
    test_both_clients_return_the_replies_of_the_service,
    test_commands_print_the_replies,
    test_ranking,
    test_real_pairs_are_scored_into_a_file,
    test_refusals_name_the_field_and_the_request,
    test_the_service_learns_how_long_the_client_waits,
)
from tests.ray.conftest import TwoNodes
from tests.support.processes import PATIENCE_S, STARTER, Process, started

pytestmark = pytest.mark.slow

COMPARISONS = synthetic(40)


@pytest.fixture(scope="module")
def alone() -> Iterator[Process]:
    with started(STARTER, engine="onnxruntime-cpu", threads=1) as running:
        yield running


def metrics(service: Process) -> httpx.Response:
    """Return the page of metrics. A scrape that a busy machine does not serve in the seconds it may take is refused."""
    deadline = time.monotonic() + PATIENCE_S
    while (page := service.get("/metrics")).status_code != httpx.codes.OK:
        assert time.monotonic() < deadline, page.text
    return page


def total(service: Process, metric: str, **labels: str) -> dict[str, float]:
    """Return the sum of a metric for each replica."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics(service).text):
        for sample in family.samples:
            if sample.name == metric and labels.items() <= sample.labels.items():
                replica = sample.labels["replica"]
                sums[replica] = sums.get(replica, 0) + sample.value
    return sums


def test_one_replica_on_each_node(two_nodes: TwoNodes) -> None:
    assert len({replica["node_id"] for replica in two_nodes.cluster.replicas()}) == 2


def test_results_are_those_of_one_machine_bit_for_bit(service: Process, alone: Process) -> None:
    before = total(service, "tinyrm_requests_total", endpoint="compare", status="200")
    for body in COMPARISONS:
        here, there = (each.post("/v1/compare", body) for each in (alone, service))
        assert (here.status_code, here.json()) == (there.status_code, there.json())
        assert set(there.headers) - set(here.headers) == {"server"}, "which Serve's proxy says"
    after = total(service, "tinyrm_requests_total", endpoint="compare", status="200")
    answered = {replica: after[replica] - before.get(replica, 0) for replica in after}
    assert len(answered) == 2
    assert all(answered.values()), "both replicas were used"
    assert sum(answered.values()) == len(COMPARISONS)


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/v1/models", "/healthz", "/readyz", "/nowhere"])
def test_every_page_is_the_same(service: Process, alone: Process, path: str) -> None:
    here, there = alone.get(path), service.get(path)
    assert (here.status_code, here.content) == (there.status_code, there.content)
    assert here.headers["content-type"] == there.headers["content-type"]


def test_the_two_pages_of_metrics_are_one(service: Process, alone: Process) -> None:
    here, there = metrics(alone), metrics(service)
    assert here.headers["content-type"] == there.headers["content-type"]
    families = [list(text_string_to_metric_families(page.text)) for page in (here, there)]
    assert [family.name for family in families[0]] == [family.name for family in families[1]]
    assert {family.type for family in families[1]} == {family.type for family in families[0]}
    batches = [next(f for f in page if f.name == "tinyrm_batch_tokens") for page in families]
    assert len(batches[1].samples) == 2 * len(batches[0].samples)


@pytest.mark.parametrize(
    ("content", "headers", "status", "kind"),
    [
        (b"{", {}, 400, "invalid_json"),
        (b"[" * 500, {}, 400, "invalid_json"),
        (b"{}", {}, 422, "invalid_request"),
        (b" " * (9 * 2**20), {}, 413, "body_too_large"),
        (json.dumps(COMPARISONS[0]).encode(), {"X-Request-Timeout-Ms": "soon"}, 422, "invalid_request"),
        (json.dumps(COMPARISONS[0]).encode(), {"X-Request-Timeout-Ms": "-1"}, 422, "invalid_request"),
        (json.dumps(COMPARISONS[0]).encode(), {"X-Request-Timeout-Ms": "9" * 5000}, 422, "invalid_request"),
        (json.dumps(COMPARISONS[0] | {"model": "other"}).encode(), {}, 404, "unknown_model"),
    ],
)
def test_wrong_requests_get_the_same_errors(
    service: Process, alone: Process, *, content: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    replies = [
        each.client.post("/v1/compare", content=content, headers={**headers, "X-Request-Id": "mine"})
        for each in (alone, service)
    ]
    assert [reply.status_code for reply in replies] == [status] * 2
    assert replies[0].json() == replies[1].json()
    assert replies[1].json()["error"]["type"] == kind
    assert replies[1].headers["x-request-id"] == "mine"


def test_requests_that_reach_no_replica_are_counted(service: Process) -> None:
    replicas = set(total(service, "tinyrm_queue_items"))
    before = total(service, "tinyrm_requests_total", endpoint="compare", status="413")
    assert service.client.post("/v1/compare", content=b" " * (9 * 2**20)).status_code == 413
    after = total(service, "tinyrm_requests_total", endpoint="compare", status="413")
    (ingress,) = set(after) - replicas
    assert after[ingress] - before.get(ingress, 0) == 1
    assert sum(after.values()) - sum(before.values()) == 1


def test_one_replica_does_not_reload_alone(service: Process) -> None:
    refused = service.post("/admin/reload", {})
    assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found")
    assert "serve deploy" in refused.json()["error"]["message"]


def test_the_work_of_a_disconnected_client_is_dropped(service: Process) -> None:
    def left() -> float:
        return sum(total(service, "tinyrm_requests_total", endpoint="compare_batch", status="499").values())

    before = left()
    # Far more work than is done until the replica hears of it.
    items = [{"prompt": "long " * 400, "response_a": "a", "response_b": str(n)} for n in range(2000)]
    with pytest.raises(httpx.ReadTimeout):
        service.client.post("/v1/compare/batch", json={"items": items}, timeout=1)
    deadline = time.monotonic() + PATIENCE_S
    while left() == before:
        assert time.monotonic() < deadline, "the replica did not hear of it"
        time.sleep(0.2)
    while sum(total(service, "tinyrm_queue_items").values()):
        assert time.monotonic() < deadline, "its work is still there"
        time.sleep(0.2)


def test_a_request_beyond_its_deadline_is_dropped(service: Process) -> None:
    items = [{"prompt": "long " * 400, "response_a": "a", "response_b": "b"}] * 1000
    late = service.client.post("/v1/compare/batch", json={"items": items}, headers={"X-Request-Timeout-Ms": "300"})
    kinds = {result.get("error", {}).get("type") for result in _results(late.json())}
    assert "deadline_exceeded" in kinds


def _results(body: dict[str, Any]) -> list[dict[str, Any]]:
    return list(body.get("results", [body]))
