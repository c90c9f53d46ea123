"""Test that the description of the API is that of the code, complete, and good for generated clients."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from service.api import document
from service.app import create_api
from service.dialects.table import ALL_DIALECTS
from service.errors import status_by_type
from service.settings import Settings
from tests.conftest import REPOSITORY
from tests.service.conftest import Served, serve
from tools.api_reference import STARTER, documents, main, replies_of

NAMES = {
    "compare": "/v1/compare",
    "compareBatch": "/v1/compare/batch",
    "rank": "/v1/rank",
    "rewards": "/v1/rewards",
    "score": "/v1/score",
    "countTokens": "/v1/tokens",
    "listModels": "/v1/models",
    "getModel": "/v1/models/{name}",
    "health": "/health",
    "healthz": "/healthz",
    "readyz": "/readyz",
    "metrics": "/metrics",
}


@cache
def described(dialects: str = "", keys: str | None = None) -> dict[str, Any]:
    api: dict[str, Any] = create_api(Settings.model_construct(dialects=dialects, api_keys_file=keys)).openapi()
    return api


@cache
def whole() -> dict[str, Any]:
    """Return the document of a service with all dialects and with keys."""
    return described(",".join(dialect.name for dialect in ALL_DIALECTS), "keys.json")


def operations(api: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, of_path in api["paths"].items():
        for operation in of_path.values():
            yield path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (one for name, one in value.items() if name == "$ref")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from references(part)


@pytest.mark.parametrize("name", ["openapi.json", "api.md"])
def test_stored_description_is_current(name: str) -> None:
    stored = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert stored == documents()[name], "run `python -m tools.api_reference docs`"


def test_every_operation_has_a_chapter_and_its_errors() -> None:
    page = documents()["api.md"]
    for operation in ("POST /v1/compare", "POST /v1/tokens", "GET /readyz"):
        assert f"## {operation}\n" in page
    assert "| 429 | Too much is waiting; see Retry-After. | `overloaded` |" in page


def test_a_command_writes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.api_reference"]
    subprocess.run([*command, str(tmp_path)], cwd=REPOSITORY, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"openapi.json", "api.md"}


def test_a_folder_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere"]) == 2
    assert capsys.readouterr().err == "nowhere is not a folder\n"


def test_operations_have_the_names_of_the_functions_of_a_client() -> None:
    assert {operation["operationId"]: path for path, operation in operations(described())} == NAMES


def test_the_names_are_unique_with_all_dialects() -> None:
    names = Counter(operation["operationId"] for _, operation in operations(whole()))
    assert len(names) > 25
    assert [name for name, count in names.items() if count > 1 or not re.fullmatch(r"[a-z]+[A-Za-z0-9]*", name)] == []


def test_every_tag_is_described_and_only_those_that_are_used() -> None:
    for api in (described(), whole()):
        used = {tag for _, operation in operations(api) for tag in operation["tags"]}
        assert {tag["name"] for tag in api["tags"]} == used
        assert all(tag["description"] for tag in api["tags"])
    assert "Retry-After" in described()["info"]["description"]


def test_every_reference_leads_somewhere() -> None:
    for reference in set(references(whole())):
        found: Any = whole()
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found


def test_every_field_of_our_own_bodies_is_described() -> None:
    schemas = described()["components"]["schemas"]
    fields = [
        (name, field, about) for name, one in schemas.items() for field, about in one.get("properties", {}).items()
    ]
    assert len(fields) > 100
    assert [(name, field) for name, field, about in fields if not about.get("description")] == []


def test_the_types_of_errors_are_those_of_the_code_in_document_and_page() -> None:
    types = set(status_by_type())
    assert set(described()["components"]["schemas"]["ErrorBody"]["properties"]["type"]["enum"]) == types
    page = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
    listed = {(int(status), kind) for status, kind in rows_of(page)}
    rare = {"http_error", "engine_error", "engine_unavailable", "mismatch"}  # no route leads there
    assert {kind for _, kind in listed} == types - rare
    assert [one for one in listed if one[0] != status_by_type()[one[1]]] == []


def rows_of(page: str) -> Iterator[tuple[str, str]]:
    """Yield the types of the table of errors, each with the status of its line that the code has for it."""
    for statuses, types in re.findall(r"^\| ([\d, ]+) \| ([^|]+) \|", page, flags=re.MULTILINE):
        for kind in re.findall(r"`(\w+)`", types):
            own = str(status_by_type().get(kind))
            yield (own if own in statuses.split(", ") else statuses.split(", ")[0]), kind


def test_every_error_has_an_example_with_a_type_of_its_status() -> None:
    examples = whole()["components"]["examples"]
    for path, operation in operations(whole()):
        for status, reply in operation["responses"].items():
            content = reply.get("content", {}).get("application/json", {})
            if document.is_error(content):
                kinds = list(content["examples"])
                assert kinds, (path, status)
                assert {status_by_type()[kind] for kind in kinds} == {int(status)}
                assert [examples[kind]["value"]["error"]["type"] for kind in kinds] == kinds


def test_headers_are_documented_where_they_are_sent(served: Served) -> None:
    compare = described()["paths"]["/v1/compare"]["post"]
    example = compare["requestBody"]["content"]["application/json"]["examples"]["one_order"]["value"]
    sent = served.client.post("/v1/compare", json=example).headers
    assert (
        set(compare["responses"]["200"]["headers"])
        == {"X-Request-Id", "Server-Timing"}
        <= {name.title() for name in sent}
    )
    assert "Retry-After" in compare["responses"]["429"]["headers"]
    assert "WWW-Authenticate" in compare["responses"]["401"]["headers"]
    assert [parameter["name"] for parameter in compare["parameters"]] == ["X-Request-Timeout-Ms"]


def test_models_and_domains_are_free_texts_with_the_served_ones_as_examples(served: Served) -> None:
    api = served.client.get("/openapi.json").json()
    for body in ("CompareRequest", "RankRequest", "RewardsRequest", "ScoreRequest", "TokensRequest"):
        properties = api["components"]["schemas"][body]["properties"]
        assert properties["domain"]["examples"] == ["general", "safety"]
        assert properties["model"]["examples"] == ["toy", served.pipeline.manifest.identity]
        for field in ("domain", "model"):
            assert [one["type"] for one in properties[field]["anyOf"]] == ["string", "null"]
            assert "enum" not in json.dumps(properties[field])


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/rewards", "/v1/score", "/v1/tokens"])
def test_the_documented_numbers_of_responses_are_those_that_are_accepted(pointwise: Served, path: str) -> None:
    api = pointwise.client.get("/openapi.json").json()
    reference = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    field = api["components"]["schemas"][reference.rsplit("/", 1)[-1]]["properties"]["responses"]
    limits = next((one for one in field.get("anyOf", ()) if one["type"] == "array"), field)
    for count, status in ((limits["minItems"] - 1, 422), (limits["minItems"], 200), (limits["maxItems"] + 1, 422)):
        body = {"prompt": "p", "responses": ["x"] * count}
        assert pointwise.client.post(path, json=body).status_code == status, count


def test_the_replies_of_the_examples_are_those_of_the_starter() -> None:
    with serve(Settings(model=str(STARTER))) as starter:
        replies = replies_of(starter.client)
    for name, examples in document.recorded().items():
        for at, example in examples.items():
            assert flat(replies[name][at]["reply"]) == pytest.approx(flat(example["reply"]), abs=1e-3), (name, at)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return path -> value, which `approx` can compare."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {at: one for name, part in parts for at, one in flat(part, f"{path}.{name}").items()}
    return {path: value}


def test_the_page_is_served_with_its_files_under_the_policy_of_the_service(served: Served) -> None:
    page = served.client.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in page.headers["Content-Security-Policy"]
    files = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
    assert {"page/reference.js", "page/reference.css"} <= set(files)
    assert [name for name in files if served.client.get(f"/{name}").status_code != 200] == []
    assert "http" not in page.text.replace("http-equiv", "")
    assert served.client.get("/redoc").content == served.client.get("/docs").content
