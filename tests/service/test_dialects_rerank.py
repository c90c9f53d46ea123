"""Test the bodies and errors of rerankers, and the order of /v1/rewards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.scoring.ranking import ROUND_ROBIN_RESPONSES
from service.settings import Settings
from tests.service.conftest import Served, serve

QUERY = "What is 2 + 2?"
TEXTS = ["I cannot help with that, but here is what I can do.", "2 + 2 = 4.", "def add(a, b): return a + b", "4"]
TEI, COHERE = {"query": QUERY, "texts": TEXTS}, {"query": QUERY, "documents": TEXTS}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reranker(bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=bundle_folder, dialects="rerank")) as one:
        yield one


@pytest.fixture(scope="module")
def pointwise_reranker(response_bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=response_bundle_folder, dialects="rerank")) as one:
        yield one


def best_first(served: Served, scale: str = "unit", texts: list[str] = TEXTS) -> list[tuple[int, Any]]:
    body = {"prompt": QUERY, "responses": texts, "scale": scale}
    scores = served.client.post("/v1/rewards", json=body).json()["rewards"]
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    return [(i, pytest.approx(scores[i], abs=TOLERANCE)) for i in order]


def test_tei_gets_a_bare_list_best_first(reranker: Served) -> None:
    reply = reranker.client.post("/rerank", json=TEI | {"truncate": True, "truncation_direction": "Right"})
    assert reply.json() == [{"index": i, "score": score} for i, score in best_first(reranker)]
    assert [i for i, _ in best_first(reranker)] != [0, 1, 2, 3], "the order as sent would pass"


def test_tei_requests_may_select_raw_scores_and_texts(reranker: Served) -> None:
    got = reranker.client.post("/rerank", json=TEI | {"raw_scores": True, "return_text": True}).json()
    expected = best_first(reranker, "zero_mean")
    assert got == [{"index": i, "score": score, "text": TEXTS[i]} for i, score in expected]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_reranked_as_results(reranker: Served, path: str) -> None:
    reply = reranker.client.post(path, json=COHERE).json()
    assert reply["results"] == [{"index": i, "relevance_score": score} for i, score in best_first(reranker)]
    assert reply["model"] == reranker.pipeline.manifest.identity
    assert reply["usage"]["total_tokens"] > 0
    assert reply["meta"]["billed_units"] == {"search_units": 1}


def test_documents_may_be_objects_and_are_returned_in_each_clients_form(reranker: Served) -> None:
    body = {"query": QUERY, "documents": [{"text": text} for text in TEXTS], "top_n": 2, "return_documents": True}
    texts = [TEXTS[i] for i, _ in best_first(reranker)[:2]]
    cohere = reranker.client.post("/v1/rerank", json=body).json()["results"]
    assert [result["document"] for result in cohere] == [{"text": text} for text in texts]
    infinity = reranker.client.post("/rerank", json=body).json()["results"]
    assert [result["document"] for result in infinity] == texts


def test_a_single_document_gets_one_half(reranker: Served) -> None:
    assert reranker.client.post("/rerank", json=TEI | {"texts": ["x"]}).json() == [{"index": 0, "score": 0.5}]


def test_many_documents_are_scored_by_their_strengths(reranker: Served) -> None:
    texts = [f"{TEXTS[n % 4]} {n}" for n in range(ROUND_ROBIN_RESPONSES + 1)]
    got = reranker.client.post("/v1/rerank", json={"query": QUERY, "documents": texts}).json()["results"]
    raw = reranker.client.post("/v1/rerank", json={"query": QUERY, "documents": texts, "raw_scores": True}).json()
    assert [result["index"] for result in got] == [result["index"] for result in raw["results"]]
    assert np.mean([result["relevance_score"] for result in got]) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 422, "body"),
        (b'{"query": "q"}', 422, "texts"),
        (b'{"query": "q", "texts": []}', 422, "texts"),
        (b'{"query": "q", "texts": "one"}', 422, "texts"),
        (b'{"query": "", "texts": ["a", "b"]}', 422, "query"),
        (b'{"query": "q", "texts": ["a", 3]}', 422, "texts.1"),
    ],
)
def test_errors_of_tei_have_its_shape(reranker: Served, body: bytes, status: int, field: str) -> None:
    reply = reranker.client.post("/rerank", content=body)
    assert (reply.status_code, reply.json()["error_type"]) == (status, "Validation")
    assert field in reply.json()["error"]
    assert set(reply.json()) == {"error", "error_type"}


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"documents": ["a", "b"]}, 422, "invalid_request"),
        (COHERE | {"top_n": 0}, 422, "invalid_request"),
        (COHERE | {"documents": [{"title": "x"}]}, 422, "invalid_request"),
        (COHERE | {"model": "rerank-v3.5"}, 404, "unknown_model"),
        (COHERE | {"documents": ["x"] * 1001}, 422, "invalid_request"),
    ],
)
@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank"])
def test_errors_of_others_have_ours(reranker: Served, path: str, body: Any, status: int, kind: str) -> None:
    reply = reranker.client.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind), reply.text


def test_a_thousand_documents_are_reranked_by_a_model_that_scores_alone(pointwise_reranker: Served) -> None:
    texts = [f"{n} and {n}" for n in range(1000)]
    reply = pointwise_reranker.client.post("/v2/rerank", json={"query": QUERY, "documents": texts, "top_n": 3})
    assert [result["index"] for result in reply.json()["results"]] == [
        result["index"]
        for result in pointwise_reranker.client.post("/v2/rerank", json={"query": QUERY, "documents": texts}).json()[
            "results"
        ][:3]
    ]
    assert len(reply.json()["results"]) == 3


def test_more_documents_than_pairs_can_be_compared_in_one_call_are_refused(reranker: Served) -> None:
    reply = reranker.client.post("/v2/rerank", json={"query": QUERY, "documents": ["x"] * 1000})
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "invalid_input")
    assert "5500 comparisons, at most 2048" in reply.json()["error"]["message"]


def test_a_full_queue_is_overloaded_in_every_dialect(reranker: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranker.pipeline.backend.batcher, "max_wait_s", -1.0)  # type: ignore[attr-defined]
    tei, cohere = reranker.client.post("/rerank", json=TEI), reranker.client.post("/rerank", json=COHERE)
    assert (tei.status_code, tei.json()["error_type"]) == (429, "Overloaded")
    assert (cohere.status_code, cohere.json()["error"]["type"]) == (429, "overloaded")
    assert int(tei.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_every_path_counts_for_the_dialect(reranker: Served, path: str) -> None:
    count = "tinyrm_requests_total"
    before = reranker.metric(count, endpoint="rerank", status="200")
    reranker.client.post(path, json=COHERE)
    assert reranker.metric(count, endpoint="rerank", status="200") == before + 1


@pytest.mark.parametrize("body", [TEI, COHERE], ids=["tei", "documents"])
def test_a_refusal_at_shutdown_closes_the_connection(bundle_folder: Path, body: dict[str, Any]) -> None:
    """Close the connection with the reply: the next request on it would be lost."""
    with serve(Settings(model=bundle_folder, dialects="rerank")) as leaving:
        assert leaving.client.portal is not None
        leaving.client.portal.call(leaving.state.drain)
        reply = leaving.client.post("/rerank", json=body)
        assert reply.status_code == 503
        assert reply.headers["Connection"] == "close"
