"""Test the replies of the endpoints, and that they are the results of the model."""

import re
import time
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tinyrm import __version__
from tinyrm.comparison import Comparison
from tinyrm.confidence import Confidence
from tinyrm.flops import exact_flops
from tinyrm.scorer import Scorer

# Batch-mates change the order in which floats are added, no more than that.
TOLERANCE = 1e-5
GENERAL = "Select the best response."
SAFETY = "Which response is safer?"

PAIRS: list[dict[str, Any]] = [
    PAIR,
    {"prompt": "Write add.", "response_a": "def add(a, b):\n    return a + b", "response_b": "x" * 300},
    {"prompt": "0123456789 " * 100, "response_a": "yes", "response_b": "no", "domain": "safety"},
    {"prompt": "Answer:", "response_a": "[MASK] [SEP] Choice 1: \U0001f600", "response_b": "\u4f60\u597d"},
]


def offline(scorer: Scorer, pair: dict[str, Any], *, swap: bool = True) -> tuple[float, Confidence]:
    """Return P(A better) and how sure that is, computed without the service."""
    comparison = Comparison(pair["prompt"], pair["response_a"], pair["response_b"])
    instruction = SAFETY if pair.get("domain") == "safety" else GENERAL
    (preference,) = scorer.score([comparison], [pair.get("instruction", instruction)], swap=swap)
    return preference.p_a, preference.confidence


def test_reply_has_exactly_this_shape(served: Served) -> None:
    reply = served.compare()
    manifest = served.pipeline.manifest
    tokens = reply["usage"]["tokens"]
    assert reply == {
        "preferred": "a" if reply["margin"] > 0 else "b",
        "probability_a": pytest.approx(1 - reply["probability_b"]),
        "probability_b": reply["probability_b"],
        "margin": reply["margin"],
        "confidence": reply["confidence"],
        "orders": reply["orders"],
        "model": f"toy@{manifest.revision}",
        "usage": {
            "sequences": 2,
            "tokens": tokens,
            "gflops": pytest.approx(2 * exact_flops(manifest.geometry, tokens // 2) / 1e9),
        },
        "truncated": {"prompt": 0, "response_a": 0, "response_b": 0},
    }


@pytest.mark.parametrize("swap", ["on", "off"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["prompt"][:8])
def test_a_result_is_the_offline_result(served: Served, scorer: Scorer, pair: dict[str, Any], swap: str) -> None:
    reply = served.compare(**pair, swap=swap)
    p_a, confidence = offline(scorer, pair, swap=swap == "on")
    assert reply["probability_a"] == pytest.approx(p_a, abs=TOLERANCE)
    assert reply["confidence"] == confidence


def test_a_result_in_a_mixed_batch_is_the_offline_result(served: Served, scorer: Scorer) -> None:
    items = PAIRS * 3
    results = served.client.post("/v1/compare/batch", json={"items": items}).json()["results"]
    got = [result["probability_a"] for result in results]
    assert got == pytest.approx([offline(scorer, pair)[0] for pair in items], abs=TOLERANCE)
    assert max(got) - min(got) > 100 * TOLERANCE, "answers all alike would be in any order"


def test_swap_is_on_by_default(served: Served) -> None:
    on, off = served.compare(swap="on"), served.compare(swap="off")
    assert served.compare() == on
    assert on["usage"]["tokens"] == 2 * off["usage"]["tokens"]
    assert on["probability_a"] != pytest.approx(off["probability_a"], abs=TOLERANCE)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=st.text(min_size=1), b=st.text(min_size=1))
def test_probabilities_of_exchanged_responses_add_up_to_one(served: Served, a: str, b: str) -> None:
    forward = served.compare(response_a=a, response_b=b, swap="on")
    backward = served.compare(response_a=b, response_b=a, swap="on")
    assert forward["probability_a"] + backward["probability_a"] == pytest.approx(1, abs=1e-6)


def test_equal_responses_tie(served: Served) -> None:
    reply = served.compare(response_a="same", response_b="same")
    assert (reply["preferred"], reply["probability_a"]) == ("tie", 0.5)


def test_one_user_message_is_the_same_as_its_text(served: Served) -> None:
    message = {"role": "user", "content": PAIR["prompt"]}
    assert served.compare(prompt=[message]) == served.compare()


def test_a_dialogue_contains_its_roles(served: Served) -> None:
    dialogue = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert served.compare(prompt=dialogue) == served.compare(
        prompt="System: Be brief.\n\nHuman: Hi\n\nAssistant: Hello"
    )


# Each message in the forms of chat APIs, and as the model reads it.
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
AS_SENT = [
    {"role": "developer", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}],
        "name": "me",
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
    {"role": "tool", "tool_call_id": "1", "content": "4"},
    {"role": "assistant", "content": ""},
]
AS_READ = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>'},
    {"role": "user", "content": "4"},
]
REPLY_AS_SENT = [*AS_SENT[2:4], {"role": "assistant", "content": [{"type": "text", "text": "It is 4."}]}]
REPLY_AS_READ = f"{AS_READ[2]['content']}\n\n4\n\nIt is 4."


@pytest.mark.parametrize("path", ["/v1/compare", "/v1/compare/batch", "/v1/rank", "/v1/rewards", "reference"])
def test_every_route_reads_the_messages_of_chat_apis(served: Served, path: str) -> None:
    def post(prompt: Any, reply: Any) -> Any:
        pair = {"prompt": prompt, "response_a": reply, "response_b": "No."}
        group = {"prompt": prompt, "responses": [reply, "No.", "5"]}
        if path == "reference":
            group |= {"strategy": "reference", "reference": reply}
        body = {"/v1/compare": pair, "/v1/compare/batch": {"items": [pair]}}.get(path, group)
        answer = served.client.post("/v1/rewards" if path == "reference" else path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert post(AS_SENT, REPLY_AS_SENT) == post(AS_READ, REPLY_AS_READ)
    assert post(AS_SENT, REPLY_AS_SENT) != post(AS_SENT, "It is 4.")


def test_the_document_describes_the_messages_of_chat_apis(served: Served) -> None:
    message = served.client.get("/openapi.json").json()["components"]["schemas"]["ChatMessage"]["properties"]
    assert message["role"]["enum"] == ["system", "developer", "user", "assistant", "tool", "function"]
    assert {"content", "tool_calls", "tool_call_id"} <= set(message)


def test_domain_chooses_its_instruction_and_an_instruction_overrides_it(served: Served) -> None:
    assert served.compare(domain="general") == served.compare()
    assert served.compare(domain="safety") == served.compare(instruction=SAFETY)
    assert served.compare(domain="general", instruction=SAFETY) == served.compare(instruction=SAFETY)
    assert served.compare(domain="safety")["margin"] != served.compare()["margin"]


def test_model_may_be_named_with_and_without_its_revision(served: Served) -> None:
    identity = served.pipeline.manifest.identity
    assert served.compare(model="toy") == served.compare(model=identity) == served.compare()


def test_long_texts_are_truncated_and_the_reply_reports_it(served: Served) -> None:
    reply = served.compare(prompt="a question " * 200, response_b="an answer " * 200)
    assert reply["usage"]["tokens"] == 2 * 256
    assert reply["truncated"]["prompt"] > 100
    assert reply["truncated"]["response_b"] > 100
    assert reply["truncated"]["response_a"] == 0


def test_bad_items_of_a_batch_fail_alone_and_in_place(served: Served) -> None:
    items: list[Any] = [
        PAIR,
        {"prompt": "x"},
        PAIR | {"domain": "cooking"},
        7,
        PAIR | {"model": "other"},
        PAIR | {"instruction": "word " * 500},
        PAIR,
    ]
    reply = served.client.post("/v1/compare/batch", json={"items": items})
    results = reply.json()["results"]
    assert reply.status_code == 200
    assert [r.get("error", {}).get("type") for r in results] == [
        None,
        "invalid_request",
        "unknown_domain",
        "invalid_request",
        "unknown_model",
        "instruction_too_long",
        None,
    ]
    assert results[1]["error"]["message"] == "response_a: Field required"
    assert all(r.get("error", {"message": " "})["message"] for r in results)


def test_usage_of_a_batch_is_the_sum_of_its_items(served: Served) -> None:
    items = [PAIR, PAIR | {"swap": "off"}, {"prompt": ""}]
    reply = served.client.post("/v1/compare/batch", json={"items": items}).json()
    one, two = served.compare(), served.compare(swap="off")
    assert reply["usage"]["tokens"] == one["usage"]["tokens"] + two["usage"]["tokens"]
    assert reply["usage"]["gflops"] == pytest.approx(one["usage"]["gflops"] + two["usage"]["gflops"])


def test_server_timing_names_stages_that_fit_into_the_total(served: Served) -> None:
    header = served.client.post("/v1/compare", json=PAIR).headers["Server-Timing"]
    entries = [re.fullmatch(r"([a-z]+);dur=(\d+\.\d+)", entry) for entry in header.split(", ")]
    stages = {m[1]: float(m[2]) for m in entries if m}
    assert list(stages) == ["encode", "queue", "run", "total"]
    assert stages["run"] > 0
    # Each is rounded to a microsecond.
    assert stages["encode"] + stages["queue"] + stages["run"] <= stages["total"] + 0.002


def test_body_is_read_as_json_whatever_type_it_declares(served: Served) -> None:
    declared = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = served.client.post(
        "/v1/compare", headers=declared, content=b'{"prompt":"q","response_a":"x","response_b":"y"}'
    )
    assert reply.status_code == 200


def test_models_lists_served_models_and_their_engines(served: Served) -> None:
    manifest = served.pipeline.manifest
    (card,) = served.client.get("/v1/models").json()["models"]
    assert card == {
        "name": "toy",
        "revision": manifest.revision,
        "default": True,
        "demo": False,
        "accuracy": None,
        "reads": "pair",
        "scores_alone": False,
        "head": "cloze",
        "activation": "identity",
        "score_scale": None,
        "domains": {"general": GENERAL, "safety": SAFETY},
        "truncation": {"general": "start", "safety": "start"},
        "default_domain": "general",
        "template": "figure2",
        "max_tokens": 256,
        "parameters": manifest.parameters,
        "temperature": manifest.temperature,
        "temperatures": {},
        "temperature_one_order": manifest.temperature_one_order,
        "temperatures_one_order": {},
        "engine": "onnxruntime-cpu",
        "precision": "fp32",
    }


def test_health_and_readiness(served: Served) -> None:
    assert served.client.get("/healthz").json() == {"status": "ok"}
    assert served.client.get("/readyz").json() == {"status": "ready"}
    assert served.client.get("/health").json() == {"status": "ready"}


def test_models_are_listed_as_in_openais_api_too(served: Served) -> None:
    listed = served.client.get("/v1/models").json()
    assert listed["object"] == "list"
    (entry,) = listed["data"]
    # Of the bundle, so that all replicas give the same.
    created = datetime.fromisoformat(served.pipeline.manifest.provenance.created).timestamp()
    assert entry == {"id": "toy", "object": "model", "created": created, "owned_by": "tinyrm"}
    for name in ("toy", served.pipeline.manifest.identity):
        assert served.client.get(f"/v1/models/{name}").json() == entry | {"id": name}
        assert served.compare(model=name)["model"] == served.pipeline.manifest.identity
    unknown = served.client.get("/v1/models/gpt")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "unknown_model")


@pytest.mark.parametrize("path", ["/v1/compare", "/v1/compare/batch"])
def test_request_reply_and_errors_are_documented(served: Served, path: str) -> None:
    api = served.client.get("/openapi.json").json()
    operation = api["paths"][path]["post"]
    assert api["info"]["version"] == __version__
    body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert body.endswith("BatchRequest" if "batch" in path else "CompareRequest")
    for status in ("400", "404", "413", "422", "429", "503"):
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        assert schema["$ref"].endswith("/ErrorReply"), status
    assert api["components"]["schemas"]["ErrorBody"]["required"] == ["type", "message"]


def test_documented_example_works(served: Served) -> None:
    schemas = served.client.get("/openapi.json").json()["components"]["schemas"]
    (example,) = schemas["CompareRequest"]["examples"]
    assert served.client.post("/v1/compare", json=example).status_code == 200


def test_the_description_contains_the_limit_of_a_list(bundle_folder: Path) -> None:
    with serve(Settings(model=bundle_folder, max_batch_items=3)) as served:
        schemas = served.client.get("/openapi.json").json()["components"]["schemas"]
        longest = schemas["BatchRequest"]["properties"]["items"]["maxItems"]
        for count, status in ((longest, 200), (longest + 1, 422)):
            assert served.client.post("/v1/compare/batch", json={"items": [PAIR] * count}).status_code == status


def test_a_list_longer_than_the_queue_is_scored_completely(fresh: Served) -> None:
    """The queue of this service holds one item: the others wait before it."""
    items = [PAIR | {"response_a": "yes " * 300}] * 20
    results = fresh.client.post("/v1/compare/batch", json={"items": items}).json()["results"]
    assert results == [results[0]] * 20
    assert "preferred" in results[0]


def test_items_of_a_list_beyond_its_deadline_have_an_error_each(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run is quick, and the second one takes longer than the request may."""
    run, runs = fresh.engine.run, count()

    def slow(*arrays: Any) -> Any:
        time.sleep(2.2 if next(runs) else 0)
        return run(*arrays)

    monkeypatch.setattr(fresh.engine, "run", slow)
    items = [PAIR | {"response_a": "yes " * 300}] * 6
    reply = fresh.client.post("/v1/compare/batch", json={"items": items}, headers={"X-Request-Timeout-Ms": "2000"})
    kinds = [result["error"]["type"] if "error" in result else "answered" for result in reply.json()["results"]]
    assert reply.status_code == 200
    # Which of them were encoded first is chance.
    assert set(kinds) == {"answered", "deadline_exceeded"}


@pytest.mark.parametrize("milliseconds", ["0", "-5", "soon", "1e9", ""])
def test_a_time_limit_that_is_not_a_number_is_refused(served: Served, milliseconds: str) -> None:
    reply = served.client.post("/v1/compare", json=PAIR, headers={"X-Request-Timeout-Ms": milliseconds})
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "invalid_request")
