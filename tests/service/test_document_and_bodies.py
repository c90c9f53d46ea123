"""Test that the OpenAPI document and the validation of bodies agree: what the document forbids is refused."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator
from pydantic import ValidationError

from tests.service.conftest import Served
from tinyrm import api

# A message with every field, and with each form of its content.
CALL = {"function": {"name": "add", "arguments": "{}"}}
MESSAGE = {
    "role": "assistant",
    "content": "4",
    "tool_calls": [CALL],
    "function_call": {"name": "add"},
    "refusal": "no",
    "name": "me",
    "tool_call_id": "1",
    "reasoning_content": "hm",
    "annotations": [],
    "audio": None,
}
PARTS = {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}
SHARED = {"prompt": [PARTS, MESSAGE], "domain": "safety", "instruction": "i", "model": "toy", "reasoning": "keep"}
COMPARISON = SHARED | {"swap": "on", "response_a": [MESSAGE], "response_b": "5"}
RESPONSES = {"responses": ["4", [MESSAGE]]}
GROUP = SHARED | RESPONSES | {"swap": "on", "empty": "last"}
CASCADE = {"strategy": "cascade", "top": 2}
REFERENCE = {"strategy": "reference", "reference": [MESSAGE]}
BODIES = [
    ("CompareRequest", COMPARISON),
    ("BatchRequest", {"items": [COMPARISON]}),
    ("RankRequest", GROUP | CASCADE | {"win_matrix": True}),
    ("RankRequest", GROUP | REFERENCE),
    ("RewardsRequest", GROUP | CASCADE | {"scale": "unit"}),
    ("RewardsRequest", GROUP | REFERENCE),
    ("ScoreRequest", SHARED | {"response": [MESSAGE]}),
    ("ScoreRequest", SHARED | RESPONSES),
    ("TokensRequest", SHARED | RESPONSES),
]
OTHERS: tuple[Any, ...] = (None, True, False, 0, 1, 1.5, -1, "", "1", "true", [], [None], ["a"], {}, {"a": 1})


def changed(value: Any) -> Iterator[Any]:
    """Yield copies with one part of it replaced, left out, or added."""
    yield from OTHERS
    places = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, part in places:
        for other in changed(part):
            yield copied(value, key, other)
        without = copy.copy(value)
        del without[key]
        yield without
    if isinstance(value, dict):
        yield value | {"unknown": None}


def copied(value: Any, key: Any, part: Any) -> Any:
    whole = copy.copy(value)
    whole[key] = part
    return whole


def is_accepted(model: Any, body: Any) -> bool:
    try:
        read = model.model_validate(body)
    except ValidationError:
        return False
    return not any(hasattr(item, "error") for item in getattr(read, "items", []))


@pytest.mark.parametrize(("name", "body"), BODIES, ids=[f"{name}-{number}" for number, (name, _) in enumerate(BODIES)])
def test_what_the_document_forbids_is_refused(served: Served, name: str, body: dict[str, Any]) -> None:
    document = served.client.get("/openapi.json").json()
    schema = Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})
    model = getattr(api, name)
    assert schema.is_valid(body)
    assert is_accepted(model, body)
    forbidden = [one for one in changed(body) if not schema.is_valid(one)]
    assert len(forbidden) > 300
    assert [json.dumps(one) for one in forbidden if is_accepted(model, one)] == []
