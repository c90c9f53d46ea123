"""Test that a refusal costs no more than reading the body: for every route, at every place of its body."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service import errors
from service.dialects import context
from service.dialects.table import ALL_DIALECTS
from service.http.body import MAX_PARTS, has_too_many_parts
from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tinyrm.api import MAX_MESSAGES
from tinyrm.api import compare as api_compare

# Of each kind, at each place of a body.
MANY = 300
WRONG: list[Any] = [0, None, "x", {}, [], True]
Path_ = tuple[str | int, ...]


@pytest.fixture(scope="module")
def every_route(bundle_folder: Path) -> Iterator[Served]:
    dialects = ",".join(dialect.name for dialect in ALL_DIALECTS)
    with serve(Settings(model=bundle_folder, dialects=dialects, cohort_timeout_s=0.1)) as one:
        yield one


def example(schema: dict[str, Any], schemas: dict[str, Any]) -> list[Any]:
    """Return values that fit a schema: one for each branch of a union, with every field set."""
    if "$ref" in schema:
        return example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return [value for branch in branches if branch.get("type") != "null" for value in example(branch, schemas)]
    match schema.get("type"):
        case "object":
            fields = {name: example(field, schemas) for name, field in schema.get("properties", {}).items()}
            most = max(map(len, fields.values()), default=1)
            return [{name: values[min(i, len(values) - 1)] for name, values in fields.items()} for i in range(most)]
        case "array":
            return [[value, value] for value in example(schema["items"], schemas)]
        case "boolean" | "integer" | "number":
            return [2]
        case _:
            return [schema.get("enum", ["x"])[0]]


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Return where a value holds a list or an object."""
    if isinstance(value, dict | list):
        yield path
        for key, part in value.items() if isinstance(value, dict) else enumerate(value[:1]):
            yield from places(part, (*path, key))


def replaced(value: Any, path: Path_, by: Any) -> Any:
    """Return the value with the part at `path` replaced."""
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


def part_at(value: Any, path: Path_) -> Any:
    for key in path:
        value = value[key]
    return value


def attacks(body: Any) -> Iterator[tuple[str, Any]]:
    for path in places(body):
        part = part_at(body, path)
        if isinstance(part, dict):
            yield f"keys at {path}", replaced(body, path, part | {f"k{i}": 0 for i in range(MANY)})
            yield f"wrong keys at {path}", replaced(body, path, {f"k{i}": 0 for i in range(MANY)})
        else:
            for wrong in WRONG:
                yield f"{wrong!r} at {path}", replaced(body, path, [wrong] * MANY)


def test_every_route_refuses_at_the_first_error(every_route: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count errors, which are what a refusal costs: pydantic makes one for each wrong part unless it is stopped."""
    counts: list[int] = []

    def counting(error: Any, **options: Any) -> Any:
        counts.append(error.error_count() if hasattr(error, "error_count") else len(error))
        return from_validation(error, **options)

    from_validation = errors.from_validation
    for module in (errors, api_compare, context):
        monkeypatch.setattr(module, "from_validation", counting)
    described = every_route.client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    tried = 0
    for path, operations in described["paths"].items():
        if "requestBody" not in operations.get("post", {}):
            continue
        schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
        for body in example(schema, schemas):
            for name, attack in attacks(body):
                counts.clear()
                reply = every_route.client.post(path, content=json.dumps(attack))
                assert reply.status_code < 500, (path, name, reply.text[:300])
                if reply.status_code != 200:
                    assert len(reply.content) < 500, (path, name)
                assert max(counts, default=0) <= 10, f"{path}, {name}: {max(counts)} errors for {MANY} wrong parts"
                tried += 1
    assert tried > 200, "the walk through the schemas found less than there is"


def test_unknown_options_in_the_query_are_refused_at_the_first_one(
    every_route: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    from_validation = errors.from_validation
    monkeypatch.setattr(errors, "from_validation", lambda e, **o: counts.append(len(e)) or from_validation(e, **o))
    query = "&".join(f"k{i}=" for i in range(MANY))
    for path in (path for dialect in ALL_DIALECTS for path in dialect.paths):
        reply = every_route.client.request("GET" if path == "/info" else "POST", f"{path}?{query}", json={})
        assert reply.status_code == 422
        assert len(reply.content) < 300
    assert counts
    assert max(counts) <= 10
    reply = every_route.client.post("/rm?" + "k" * 5000, json={"prompt": "q", "response": "r"})
    assert "kkk" in reply.text
    assert len(reply.content) < 300


def test_a_prompt_of_many_responses_is_written_once(every_route: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five million characters for each of a thousand responses would block the service for 14 seconds."""
    written: list[Any] = []
    monkeypatch.setattr(context, "json", SimpleNamespace(dumps=lambda it: written.append(it) or json.dumps(it)))
    body = {"text_1": "What is 2 + 2?", "text_2": [f"{i}" for i in range(8)]}
    assert len(every_route.client.post("/score", json=body).json()["data"]) == 8
    assert written == ["What is 2 + 2?"]


def test_a_long_key_is_not_sent_back(served: Served) -> None:
    for body in (PAIR | {"k" * 3_000_000: 1}, {**PAIR, "prompt": [{"k" * 3_000_000: 1}]}):
        reply = served.client.post("/v1/compare", content=json.dumps(body))
        assert reply.json()["error"]["type"] == "invalid_request"
        assert "kkk" in reply.json()["error"]["message"]
        assert len(reply.content) < 300


@pytest.mark.parametrize(
    "content",
    [
        b"[" + b"[]," * MAX_PARTS,
        b"{" + b",".join(b'"%d":0' % i for i in range(MAX_PARTS // 2 + 2)) + b"}",
        b"[" + b"0," * (MAX_PARTS + 1),
    ],
    ids=["lists", "keys", "values"],
)
def test_a_body_of_too_many_parts_is_not_parsed(
    served: Served, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object, **__: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr("starlette.requests.json.loads", parse)
    reply = served.client.post("/v1/compare", content=content)
    monkeypatch.undo()
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_json")
    assert "keys and values" in reply.json()["error"]["message"]


@pytest.mark.parametrize("field", ["prompt", "response_a"])
def test_a_dialogue_of_too_many_messages_is_refused(served: Served, field: str) -> None:
    body = PAIR | {field: [{"role": "assistant", "content": "x"}] * (MAX_MESSAGES + 1)}
    reply = served.client.post("/v1/compare", json=body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "invalid_request")
    assert f"at most {MAX_MESSAGES} items" in reply.json()["error"]["message"]


def test_characters_of_texts_are_no_parts() -> None:
    text = json.dumps({"prompt": '[{:,\\"' * MAX_PARTS})
    assert not has_too_many_parts(text.encode())
    largest = {"items": [PAIR | {"prompt": [{"role": "user", "content": "x" * 20}] * 20}] * 2048}
    assert not has_too_many_parts(json.dumps(largest).encode()), "a batch of dialogues is accepted"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_json_in_another_encoding_is_refused(served: Served, encoding: str) -> None:
    reply = served.client.post("/v1/compare", content=json.dumps(PAIR).encode(encoding))
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_json")
    assert reply.json()["error"]["message"] == "the body is not JSON in UTF-8"
    assert served.client.post("/v1/compare", content=json.dumps(PAIR).encode("utf-8-sig")).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "gzip, identity", "x" * 2000])
def test_a_compressed_body_is_a_415(every_route: Served, encoding: str) -> None:
    for path in ("/v1/compare", "/v1/rank", "/get_reward"):
        reply = every_route.client.post(path, content=b"\x1f\x8b", headers={"Content-Encoding": encoding})
        assert (reply.status_code, reply.json()["error"]["type"]) == (415, "unsupported_encoding")
        assert reply.headers["accept-encoding"] == "identity"
        assert len(reply.content) < 300


@pytest.mark.parametrize("encoding", ["identity", "", "Identity"])
def test_a_body_that_is_declared_as_it_is_is_read(served: Served, encoding: str) -> None:
    reply = served.client.post("/v1/compare", json=PAIR, headers={"Content-Encoding": encoding})
    assert reply.status_code == 200


def test_null_is_the_default_of_every_optional_field_of_a_dialect(every_route: Served) -> None:
    required = {
        "/get_reward": {"query": ["q r"], "prompts": ["q"], "labels": ["r"]},
        "/rm": {"prompt": "q", "response": "r", "label": "s"},
        "/classify": {"input": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nr<|im_end|>"},
        "/v1/embeddings": {"input": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nr<|im_end|>"},
        "/score": {"text_1": "q", "text_2": ["a", "b"]},
        "/v1/score": {"text_1": "q", "text_2": ["a", "b"]},
        "/pooling": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]},
        "/predict": {"inputs": [["q", "a"], ["q", "b"]]},
        "/rerank": {"query": "q", "texts": ["a", "b"]},
        "/v1/rerank": {"query": "q", "documents": ["a", "b"]},
        "/v2/rerank": {"query": "q", "documents": ["a", "b"]},
        "/compare": {
            "conversation_history": [{"role": "user", "content": "q"}],
            "response_objs": [{"output": [{"type": "message", "content": text}]} for text in "ab"],
        },
        "/seed_session": {},
        "/aggregate_metrics": {"verify_responses": [{"reward": 3.0}]},
        "/verify": {
            "responses_create_params": {"input": "q"},
            "response": {"output": [{"type": "message", "content": "a"}]},
        },
    }
    described = every_route.client.get("/openapi.json").json()
    without_optional_fields = {"/info", "/v1/score/evaluation"}
    assert {path for dialect in ALL_DIALECTS for path in dialect.paths} - without_optional_fields == set(required)
    for path, body in required.items():
        schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        names = [one["$ref"] for one in schema.get("oneOf", schema.get("anyOf", [schema]))]
        fields = {
            field
            for name in names
            for field in described["components"]["schemas"][name.rpartition("/")[2]]["properties"]
        }
        expected = every_route.client.post(path, json=body)
        assert expected.status_code == 200, (path, expected.text)
        nulls = body | dict.fromkeys(fields - set(body) - {"texts", "documents"})
        got = every_route.client.post(path, json=nulls)
        assert got.status_code == 200, (path, got.text)
