"""Test the paths of other servers: whole groups in one call get the rewards of /v1/rewards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.app import check_settings
from service.settings import Settings
from tests.service.conftest import Served, serve
from tests.service.test_dialects_trainers import CHATML, PROMPT, RESPONSES, TOLERANCE, rewards
from tinyrm.errors import InvalidSettings

SERVERS = "vllm,sglang,rerank,llamafactory"
PATHS = ["/score", "/v1/score"]
MESSAGES = [{"role": "user", "content": PROMPT}]
OTHER = "Write add."


@pytest.fixture(scope="module")
def pairs(bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=bundle_folder, dialects=SERVERS, group_size=4, cohort_timeout_s=60)) as one:
        yield one


@pytest.fixture(scope="module")
def alone(response_bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=response_bundle_folder, dialects=SERVERS, cohort_timeout_s=600)) as one:
        yield one


def post(served: Served, path: str, body: Any) -> Any:
    reply = served.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def scores(served: Served, path: str, body: Any) -> list[float]:
    data = post(served, path, body)["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [item["score"] for item in data]


def refused(served: Served, path: str, body: Any) -> tuple[int, str, str]:
    reply = served.client.post(path, json=body)
    error = reply.json()["error"]
    assert error.keys() == {"type", "message", "param", "code"}, "as clients of OpenAI's API read it"
    assert error["code"] == reply.status_code
    return reply.status_code, error["type"], error["message"]


def dialogue(response: str) -> str:
    return f"{CHATML}{response}<|im_end|>\n"


# vLLM


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items")])
def test_one_prompt_and_its_responses_are_a_group(pairs: Served, path: str, names: tuple[str, str]) -> None:
    for prompt in (PROMPT, [PROMPT], CHATML):
        body = dict(zip(names, (prompt, RESPONSES), strict=True))
        assert scores(pairs, path, body) == rewards(pairs, "unit")
        assert scores(pairs, path, body | {"use_activation": False}) == rewards(pairs, "zero_mean")
    reply = post(pairs, path, body)
    assert (reply["object"], reply["data"][0]["object"]) == ("list", "score")
    assert reply["model"] == pairs.pipeline.manifest.identity
    assert reply["usage"]["prompt_tokens"] > 0


def test_lists_of_both_may_hold_several_groups(pairs: Served) -> None:
    order = [(PROMPT, RESPONSES[0]), (OTHER, RESPONSES[3]), (PROMPT, RESPONSES[1]), (OTHER, RESPONSES[1])]
    body = {"text_1": [prompt for prompt, _ in order], "text_2": [response for _, response in order]}
    got = scores(pairs, "/score", body)
    assert [got[0], got[2]] == rewards(pairs, "unit", RESPONSES[:2])
    assert [got[1], got[3]] == rewards(pairs, "unit", [RESPONSES[3], RESPONSES[1]], prompt=OTHER)
    assert max(got) - min(got) > 100 * TOLERANCE, "scores all alike would be in any order"


def test_texts_may_be_parts(pairs: Served) -> None:
    def parts(text: str) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}]}

    body = {"text_1": parts(PROMPT), "text_2": [parts(text) for text in RESPONSES]}
    assert scores(pairs, "/score", body) == rewards(pairs, "unit")
    image = {"content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
    assert refused(pairs, "/score", body | {"text_1": image})[:2] == (422, "invalid_request")


@pytest.mark.parametrize("path", PATHS)
def test_a_response_without_others_needs_a_model_that_scores_it_alone(pairs: Served, alone: Served, path: str) -> None:
    body = {"text_1": PROMPT, "text_2": "4"}
    status, kind, message = refused(pairs, path, body)
    assert (status, kind) == (422, "not_pointwise")
    assert "send all responses to it in one call" in message
    own = post(alone, "/v1/score", {"prompt": PROMPT, "response": "4"})["results"][0]["score"]
    assert scores(alone, path, body | {"use_activation": False}) == pytest.approx([own], abs=TOLERANCE)
    several = {"text_1": [PROMPT, OTHER], "text_2": ["4", "4"], "use_activation": False}
    got = scores(alone, path, several)
    assert got[0] == pytest.approx(own, abs=TOLERANCE)
    assert got[1] != got[0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "kind", "field"),
    [
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "invalid_input", "2 prompts and 1 responses"),
        ({"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "invalid_input", "2 prompts and 3 responses"),
        ({"text_1": [], "text_2": ["c"]}, "invalid_request", "text_1"),
        ({"text_1": "a", "text_2": []}, "invalid_request", "text_2"),
        ({"text_1": "a"}, "invalid_request", "text_2"),
        ({"documents": ["a", "b"]}, "invalid_request", "text_1"),
        ({"text_1": "a", "text_2": ["b", 3]}, "invalid_request", "text_2"),
        ({"text_1": "a", "text_2": ["b"] * 2049}, "invalid_input", "2049 responses"),
        ({"text_1": list("abcdefgh") * 32, "text_2": ["r"] * 256}, "invalid_input", "8 groups take 3968 comparisons"),
    ],
)
def test_invalid_texts_are_refused(pairs: Served, path: str, body: dict[str, Any], kind: str, field: str) -> None:
    status, got, message = refused(pairs, path, body)
    assert (status, got) == (422, kind)
    assert field in message


def test_the_services_own_scores_keep_their_path(alone: Served, pairs: Served, pointwise: Served) -> None:
    body = {"prompt": PROMPT, "responses": RESPONSES}
    assert post(alone, "/v1/score", body) == post(pointwise, "/v1/score", body)
    assert refused(pairs, "/v1/score", body)[:2] == (422, "not_pointwise")
    assert refused(alone, "/v1/score", body | {"txet": 1})[:2] == (422, "invalid_request")
    assert "prompt" in refused(alone, "/v1/score", {})[2]
    for served in (alone, pointwise):
        described = served.client.get("/openapi.json").json()
        names = described["components"]["schemas"]["ScoreRequest"]["properties"]["model"]["examples"]
        assert alone.pipeline.manifest.name in names
        assert list(described["paths"]).count("/v1/score") == 1


def test_a_model_that_is_not_served_is_refused_unless_the_settings_allow_it(pairs: Served, bundle_folder: Path) -> None:
    foreign = {"text_1": PROMPT, "text_2": RESPONSES, "model": "BAAI/bge-reranker-v2-m3"}
    status, kind, message = refused(pairs, "/score", foreign)
    assert (status, kind) == (404, "unknown_model")
    assert "TINYRM_UNKNOWN_MODELS=default" in message
    assert scores(pairs, "/score?model=toy", foreign) == scores(pairs, "/score", foreign | {"model": "toy"})
    settings = Settings(model=bundle_folder, dialects="vllm,rerank", unknown_models="default")
    with serve(settings) as lenient:
        assert scores(lenient, "/score", foreign) == rewards(lenient, "unit")
        cohere = {"model": "rerank-v3.5", "query": PROMPT, "documents": RESPONSES}
        assert len(post(lenient, "/v2/rerank", cohere)["results"]) == len(RESPONSES)
        reply = lenient.client.post("/v1/rewards", json={"prompt": "p", "responses": ["a", "b"], "model": "x"})
        assert reply.status_code == 404, "the service's own API refuses it in any case"


def test_rerankers_of_vllm_get_objects_and_those_of_infinity_texts(pairs: Served, bundle_folder: Path) -> None:
    body = {"query": PROMPT, "documents": RESPONSES, "return_documents": True, "top_n": 1}
    with serve(Settings(model=bundle_folder, dialects="rerank")) as infinity:
        ((as_text,), (as_object,)) = (post(one, "/rerank", body)["results"] for one in (infinity, pairs))
    assert as_object["document"] == {"text": as_text["document"]}
    assert as_text["document"] in RESPONSES


@pytest.mark.parametrize(("flag", "scale"), [({}, "unit"), ({"use_activation": False}, "zero_mean")])
def test_pooling_and_classify_return_the_same_rewards(pairs: Served, flag: dict[str, bool], scale: str) -> None:
    body = {"input": [dialogue(text) for text in RESPONSES], **flag}
    pooled = post(pairs, "/pooling", body | {"task": "classify"})
    assert [item["data"] for item in pooled["data"]] == [[value] for value in rewards(pairs, scale).expected]
    classified = post(pairs, "/classify", body)
    assert [item["probs"] for item in classified["data"]] == [item["data"] for item in pooled["data"]]
    assert refused(pairs, "/pooling", body | {"task": "embed"})[:2] == (422, "invalid_request")


def test_messages_are_a_dialogue(alone: Served) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES, {"role": "assistant", "content": "4"}]
    text = f"<|im_start|>system\nBe brief.<|im_end|>\n{dialogue('4')}"
    for path, name in (("/classify", "probs"), ("/pooling", "data"), ("/v1/embeddings", "embedding")):
        as_text, as_messages = (
            post(alone, path, body)["data"][0][name] for body in ({"input": text}, {"messages": messages})
        )
        assert as_messages == as_text
        for wrong in (messages[:-1], messages[-1:], [], "x"):
            assert refused(alone, path, {"messages": wrong})[0] == 422


# SGLang


def test_sglang_gets_a_list_for_a_list_and_an_object_for_a_text(pairs: Served, alone: Served) -> None:
    got = post(pairs, "/classify", {"model": "any", "text": [dialogue(text) for text in RESPONSES]})
    assert [item["embedding"][0] for item in got] == rewards(pairs, "zero_mean")
    assert all(item["meta_info"]["prompt_tokens"] > 0 and not item["partial"] for item in got)
    one = post(alone, "/classify", {"text": dialogue("4")})
    embedded = post(alone, "/v1/embeddings", {"input": dialogue("4")})
    assert one["embedding"] == embedded["data"][0]["embedding"]
    assert refused(alone, "/classify", {"text": "no template"})[:2] == (422, "invalid_input")
    assert refused(alone, "/classify", {"text": [["q", "r"]]})[:2] == (422, "invalid_request")
    assert refused(alone, "/classify", {})[2].startswith("input")


def test_errors_name_the_fields_of_the_body_alone(alone: Served) -> None:
    for path, field in (("/pooling", "input"), ("/classify", "text")):
        assert refused(alone, path, {field: [1, 2]})[2] == f"{field}: Input should be a valid string"


def test_a_path_of_a_dialect_that_is_off_names_the_setting(pairs: Served) -> None:
    def message(path: str) -> str:
        reply = pairs.client.post(path, json={})
        assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found")
        return str(reply.json()["error"]["message"])

    assert message("/rm") == "/rm needs a dialect: set TINYRM_DIALECTS to slime"
    assert "TINYRM_DIALECTS" not in message("/nothing")


# text-embeddings-inference


@pytest.mark.parametrize(("flag", "scale"), [({}, "unit"), ({"raw_scores": True}, "zero_mean")])
def test_tei_predicts_a_batch_as_groups(pairs: Served, flag: dict[str, bool], scale: str) -> None:
    inputs = [[CHATML, RESPONSES[0]], [OTHER, "x"], [dialogue(RESPONSES[1])], [OTHER, "y"], [dialogue(RESPONSES[3])]]
    got = post(pairs, "/predict", {"inputs": inputs, "truncate": True, **flag})
    assert {prediction["label"] for (prediction,) in got} == {"LABEL_0"}
    values = [prediction["score"] for (prediction,) in got]
    assert values[::2] == rewards(pairs, scale, [RESPONSES[0], RESPONSES[1], RESPONSES[3]])
    assert values[1::2] == rewards(pairs, scale, ["x", "y"], prompt=OTHER)


def test_tei_predicts_a_single_sequence(pairs: Served, alone: Served) -> None:
    (one,) = post(alone, "/predict", {"inputs": dialogue("4"), "raw_scores": True})
    for same in ([dialogue("4")], [CHATML, "4"]):
        assert post(alone, "/predict", {"inputs": same, "raw_scores": True}) == [one]
    for wrong in ([], [[]], ["a", "b", "c"], [["a", "b", "c"]], "no template", {}, [["a", "b"], "c"], [PROMPT, "4"]):
        reply = pairs.client.post("/predict", json={"inputs": wrong})
        assert (reply.status_code, reply.json()["error_type"]) == (422, "Validation")
        assert isinstance(reply.json()["error"], str)


def test_tei_describes_the_model(pairs: Served) -> None:
    info = pairs.client.get("/info").json()
    manifest = pairs.pipeline.manifest
    assert (info["model_id"], info["model_sha"]) == ("toy", manifest.revision)
    assert info["max_input_length"] == manifest.spec.max_tokens
    assert "reranker" in info["model_type"]
    unknown = pairs.client.get("/info?model=x")
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "Validation")


# LLaMA-Factory


def test_llamafactory_gets_the_scores_of_dialogues_alone(alone: Served, pairs: Served) -> None:
    body = {"model": "model", "messages": [f"<|endoftext|>{dialogue(text)}<|endoftext|>" for text in RESPONSES]}
    own = post(alone, "/v1/score", {"prompt": MESSAGES, "responses": RESPONSES})["results"]
    expected = pytest.approx([result["score"] for result in own], abs=TOLERANCE)
    reply = post(alone, "/v1/score/evaluation", body)
    assert reply["scores"] == expected
    assert max(reply["scores"]) - min(reply["scores"]) > 100 * TOLERANCE
    assert post(alone, "/v1/score/evaluation", body | {"messages": []})["scores"] == []
    for served, wrong, kind in (
        (pairs, body, "not_pointwise"),
        (alone, body | {"messages": ["no template"]}, "invalid_input"),
        (alone, body | {"messages": [3]}, "invalid_request"),
    ):
        refusal = served.client.post("/v1/score/evaluation", json=wrong)
        assert (refusal.status_code, refusal.json()["error"]["type"]) == (422, kind)


# All of them


def test_verl_beside_them_has_its_503(bundle_folder: Path) -> None:
    body = {"text": dialogue("4")}
    for dialects, status in (("vllm,sglang", 429), ("vllm,sglang,verl", 503)):
        with serve(Settings(model=bundle_folder, dialects=dialects, max_cohort_bytes=1)) as full:
            assert refused(full, "/classify", body)[:2] == (status, "overloaded")


def test_whole_groups_need_no_cohorts_so_several_processes_may_score_them(bundle_folder: Path) -> None:
    check_settings(Settings(model=bundle_folder, dialects="vllm", workers=2))
    check_settings(Settings(model=bundle_folder, dialects="rerank,llamafactory", workers=2))
    with pytest.raises(InvalidSettings, match="DIALECTS=sglang needs"):
        check_settings(Settings(model=bundle_folder, dialects=SERVERS, workers=2))


def test_every_path_counts_once_for_one_dialect(pairs: Served) -> None:
    def counted(name: str) -> float:
        return pairs.metric("tinyrm_requests_total", endpoint=name, status="422")

    before = {name: counted(name) for name in ("vllm", "sglang", "score")}
    for path in ("/classify", "/score", "/pooling", "/v1/score"):
        assert pairs.client.post(path, json={}).status_code == 422
    assert {name: counted(name) - count for name, count in before.items()} == {"vllm": 3, "sglang": 0, "score": 1}
