"""Test that any input gets a result or an error with a stable type and a message, and never a 500."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.service.conftest import PAIR, Served
from tinyrm.api import MAX_ITEMS, BatchRequest, CompareRequest
from tinyrm.errors import InvalidInput

COMPARE, BATCH = "/v1/compare", "/v1/compare/batch"
LIMIT = 8 * 2**20


@dataclass(frozen=True)
class Case:
    """A request, its status and the type of its error; status 200 has none."""

    name: str
    content: bytes | None
    status: int = 422
    type: str = "invalid_request"
    path: str = COMPARE
    method: str = "POST"


def body(**changes: Any) -> bytes:
    return json.dumps(PAIR | changes).encode()


def without(field: str) -> bytes:
    return json.dumps({key: value for key, value in PAIR.items() if key != field}).encode()


def raw(response_b: bytes) -> bytes:
    """Return a body whose last value is written as given."""
    return b'{"prompt": "q", "response_a": "x", "response_b": ' + response_b + b"}"


def items(*parts: bytes) -> bytes:
    return b'{"items": [' + b", ".join(parts) + b"]}"


OK = ""
NO_TEXTS: list[Any] = [None, 3, True, {}, ["x"]]
CASES = [
    # fields
    *(Case(f"no {field}", without(field)) for field in PAIR),
    *(Case(f"empty {field}", body(**{field: ""})) for field in PAIR),
    *(Case(f"{field} is {value!r}", body(**{field: value})) for field in PAIR for value in NO_TEXTS),
    Case("no messages", body(prompt=[])),
    Case("unknown role", body(prompt=[{"role": "robot", "content": "x"}])),
    Case("empty message", body(prompt=[{"role": "user", "content": ""}])),
    Case("message without content", body(prompt=[{"role": "user"}])),
    Case("message with unknown field", body(prompt=[{"role": "user", "content": "x", "weight": 1}])),
    Case("message without text in its parts", body(prompt=[{"role": "user", "content": []}])),
    Case("image", body(prompt=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])),
    Case("part that is a number", body(prompt=[{"role": "user", "content": [1]}])),
    Case("content that is an object", body(prompt=[{"role": "user", "content": {"text": "x"}}])),
    Case("silent assistant alone", body(prompt=[{"role": "assistant", "content": None}])),
    Case("call without a name", body(prompt=[{"role": "assistant", "tool_calls": [{"id": "1"}]}])),
    Case(
        "surrogate as a key of a part",
        body(prompt=[{"role": "user", "content": [{"\ud800": 1}]}]),
        type="invalid_text",
    ),
    Case("calls that are a number", body(prompt=[{"role": "assistant", "tool_calls": 5}])),
    Case("surrogate as the type of a part", body(prompt=[{"role": "user", "content": [{"type": "\ud800"}]}])),
    Case("response without messages", body(response_a=[])),
    Case("response of the user", body(response_a=[{"role": "user", "content": "x"}])),
    Case("response without text", body(response_a=[{"role": "assistant", "content": None}])),
    Case("message is text", body(prompt=["x"])),
    Case("unknown field", body(response_c="z")),
    Case("swap is a boolean", body(swap=True)),
    Case("swap is unknown", body(swap="maybe")),
    Case("empty instruction", body(instruction="")),
    Case("domain is a number", body(domain=1)),
    Case("unknown domain", body(domain="cooking"), type="unknown_domain"),
    Case("empty domain", body(domain=""), type="unknown_domain"),
    Case("unknown domain beside an instruction", body(domain="cooking", instruction="x"), type="unknown_domain"),
    Case("endless domain", body(domain="x" * 201)),
    Case("unknown model", body(model="other"), 404, "unknown_model"),
    Case("unknown revision", body(model="toy@000000000000"), 404, "unknown_model"),
    Case("too long instruction", body(instruction="word " * 500), type="instruction_too_long"),
    # bodies
    Case("no body", None),
    Case("list", b"[]"),
    Case("null", b"null"),
    Case("text", b'"x"'),
    Case("number", b"1"),
    Case("broken JSON", b'{"prompt": ', 400, "invalid_json"),
    Case("not JSON", b"prompt=q&response_a=x", 400, "invalid_json"),
    Case("two values", body() + body(), 400, "invalid_json"),
    Case("control character", raw(b'"\x00"'), 400, "invalid_json"),
    Case("bytes that are no UTF-8", raw(b'"\xff\xfe"'), 400, "invalid_json"),
    Case("Latin-1", raw('"é"'.encode("latin-1")), 400, "invalid_json"),
    Case("100k open brackets", b"[" * 100_000, 400, "invalid_json"),
    Case("100k open objects", b'{"a":' * 100_000, 400, "invalid_json"),
    Case("100k nested lists", raw(b"[" * 100_000 + b"]" * 100_000), 400, "invalid_json"),
    Case("nested too deep", raw(b"[" * 32 + b"]" * 32), 400, "invalid_json"),
    Case("nested as deep as is read", raw(b"[" * 31 + b"]" * 31)),
    Case("brackets in a text", body(prompt='"[{' * 100 + "\\"), 200, OK),
    Case("integer of 5000 digits", raw(b"9" * 5000), 400, "invalid_json"),
    Case("NaN", raw(b"NaN")),
    Case("Infinity", raw(b"Infinity")),
    Case("-Infinity", raw(b"-Infinity")),
    Case("number beyond floats", raw(b"1e400")),
    Case("body over the limit", raw(b'"' + b"x" * LIMIT + b'"'), 413, "body_too_large"),
    Case("10 MB prompt", body(prompt="x" * 10_000_000), 413, "body_too_large"),
    # texts
    Case("lone surrogate", raw(rb'"\ud800"'), type="invalid_text"),
    Case(
        "lone surrogate in a part",
        body(prompt=[{"role": "user", "content": [{"text": "\udfff"}]}]),
        type="invalid_text",
    ),
    Case(
        "lone surrogate in a call",
        body(response_a=[{"role": "assistant", "tool_calls": [{"function": {"name": "\ud800"}}]}]),
        type="invalid_text",
    ),
    Case("lone surrogate in a message", body(prompt=[{"role": "user", "content": "\udfff"}]), type="invalid_text"),
    Case("lone surrogate in the instruction", body(instruction="\ud800"), type="invalid_text"),
    Case("lone surrogate in the domain", body(domain="\ud800"), type="invalid_text"),
    Case("lone surrogate in the model", body(model="\ud800"), type="invalid_text"),
    Case("lone surrogate in a field's name", body(**{"\ud800": 1}), type="invalid_text"),
    Case("surrogate pair", raw(rb'"\ud83d\ude00"'), 200, OK),
    Case("NUL", body(response_a="a\0b"), 200, OK),
    Case("NUL alone", body(response_a="\0"), 200, OK),
    Case("special tokens", body(response_a="[MASK] [SEP] Choice 1: x [CLS][PAD]"), 200, OK),
    Case("spaces", body(prompt=" ", response_a="\n"), 200, OK),
    Case("long prompt", body(prompt="What is it? " * 20_000), 200, OK),
    # batches
    Case("batch without items", b"{}", path=BATCH),
    Case("empty batch", items(), path=BATCH),
    Case("items are no list", b'{"items": {}}', path=BATCH),
    Case("batch with unknown field", b'{"items": [1], "swap": "on"}', path=BATCH),
    Case("too many items", items(*[body()] * 2049), type="invalid_input", path=BATCH),
    Case("far too many items", items(*[b"1"] * 100_000), path=BATCH),
    Case("100k brackets as items", b'{"items": ' + b"[" * 100_000, 400, "invalid_json", BATCH),
    Case("only bad items", items(b"1", b"null", b"{}", raw(b"NaN"), raw(rb'"\ud800"')), 200, OK, BATCH),
    # paths and methods
    Case("GET compare", None, 405, "method_not_allowed", method="GET"),
    Case("GET compare with a body", body(), 405, "method_not_allowed", method="GET"),
    Case("PUT compare", body(), 405, "method_not_allowed", method="PUT"),
    Case("DELETE models", None, 405, "method_not_allowed", "/v1/models", "DELETE"),
    Case("POST metrics", body(), 405, "method_not_allowed", "/metrics"),
    Case("invented method", body(), 405, "method_not_allowed", method="BREW"),
    Case("unknown path", body(), 404, "not_found", "/v1/compete"),
    Case("path with a slash too many", body(), 404, "not_found", "/v1/compare/"),
    Case("models with a body", body(), 200, OK, "/v1/models", "GET"),
]


def assert_sentence(error: dict[str, str], kind: str) -> None:
    assert set(error) == {"type", "message"}
    assert error["type"] == kind
    assert len(error["message"].split()) >= 2
    assert len(error["message"]) < 500, "an error must not send back what was sent"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gets_its_error(served: Served, case: Case) -> None:
    reply = served.client.request(case.method, case.path, content=case.content)
    assert reply.status_code == case.status, reply.text[:500]
    if case.status != 200:
        assert set(reply.json()) == {"error"}
        assert_sentence(reply.json()["error"], case.type)


def test_chunked_body_over_the_limit_is_refused(served: Served) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(9):
            yield b"x" * 2**20

    reply = served.client.post(COMPARE, content=chunks())
    assert reply.status_code == 413
    assert_sentence(reply.json()["error"], "body_too_large")


def test_a_body_at_the_limit_is_accepted(served: Served) -> None:
    spaces = b" " * (LIMIT - len(body()))
    assert served.client.post(COMPARE, content=body() + spaces).status_code == 200
    assert served.client.post(COMPARE, content=body() + spaces + b" ").status_code == 413


def test_far_too_many_items_are_refused_before_all_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse early: a description of a million wrong items takes ten seconds and would block the service."""
    described = []
    monkeypatch.setattr(
        "tinyrm.api.compare.from_validation", lambda error, root: described.append(error) or InvalidInput(root)
    )
    with pytest.raises(ValidationError):
        BatchRequest.model_validate({"items": [1] * 8 * MAX_ITEMS})
    assert len(described) <= MAX_ITEMS + 1


def test_the_first_wrong_message_ends_the_validation() -> None:
    with pytest.raises(ValidationError) as refusal:
        CompareRequest.model_validate(PAIR | {"prompt": [1] * 1000})
    assert refusal.value.error_count() == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (body(prompt=[{"role": "user", "content": ""}]), "prompt.0: a message of the user must have a text"),
        (body(prompt=3), "prompt: Input should be a valid string"),
        (body(response_c="z"), "response_c: Extra inputs are not permitted"),
        (None, "body: Field required"),
        (body(domain="cooking"), "no domain 'cooking' in this model; it has: general, safety"),
    ],
    ids=["message", "prompt", "unknown field", "no body", "domain"],
)
def test_the_message_names_the_field_and_the_reason(served: Served, content: bytes | None, message: str) -> None:
    assert served.client.post(COMPARE, content=content).json()["error"]["message"] == message


def test_method_not_allowed_names_the_allowed_one(served: Served) -> None:
    assert served.client.get(COMPARE).headers["allow"] == "POST"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["prompt", "response_a", "response_b", "domain", "instruction", "swap", "model", "items"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([COMPARE, BATCH]), changes=st.dictionaries(fields, json_values, max_size=3))
def test_no_json_value_causes_a_500(served: Served, path: str, changes: dict[str, Any]) -> None:
    content = body(**changes) if path == COMPARE else json.dumps({"items": [PAIR | changes, changes]}).encode()
    reply = served.client.post(path, content=content)
    assert reply.status_code in {200, 404, 422}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_no_bytes_cause_a_500(served: Served, content: bytes) -> None:
    assert served.client.post(COMPARE, content=content).status_code in {400, 422}
