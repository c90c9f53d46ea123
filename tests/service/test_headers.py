"""Test the headers for browsers, and that /docs works with them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import HTMLResponse
from starlette.testclient import TestClient

from service.app import create_api
from service.dialects.table import ALL_DIALECTS
from service.http.headers import ReplyHeadersMiddleware
from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tests.service.test_auth import entry, write

PAGES = "https://app.example"
PREFLIGHT = {"Origin": PAGES, "Access-Control-Request-Method": "POST"}


@pytest.fixture(scope="module")
def open_to_pages(bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=bundle_folder, cors_origins=f"{PAGES}, http://localhost:3000")) as one:
        yield one


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/compare", b'{"prompt":"q","response_a":"x","response_b":"y"}'),
        ("POST", "/v1/compare", b"{"),
        ("GET", "/metrics", None),
        ("GET", "/nowhere", None),
        ("GET", "/openapi.json", None),
        ("GET", "/v1/compare", None),
    ],
)
def test_every_reply_has_its_type_and_forbids_caching(
    served: Served, method: str, path: str, content: bytes | None
) -> None:
    headers = served.client.request(method, path, content=content).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "server" not in headers


def routes(method: str) -> list[str]:
    settings = Settings(dialects=",".join(dialect.name for dialect in ALL_DIALECTS))
    return [route.path for route in all_routes(create_api(settings)) if method in route.methods]


def all_routes(app: Any) -> Iterator[Any]:
    for route in app.routes:
        if hasattr(route, "methods"):
            yield route
        elif hasattr(route, "original_router"):
            yield from all_routes(route.original_router)


@pytest.mark.parametrize("path", [*routes("GET"), "/nowhere"])
def test_head_is_get_without_the_body(served: Served, path: str) -> None:
    path = path.format(name="app.js" if path.startswith("/page/") else "toy")
    got, headed = served.client.get(path), served.client.head(path)
    assert (headed.status_code, headed.content) == (got.status_code, b"")
    assert got.status_code == (404 if path in ("/nowhere", "/info") else 200), "/info is a dialect's, which is off"
    varying = {"x-request-id", "content-length" if path == "/metrics" else ""}
    assert {name: value for name, value in headed.headers.items() if name not in varying} == {
        name: value for name, value in got.headers.items() if name not in varying
    }


def test_head_of_a_route_that_takes_only_post_names_it(served: Served) -> None:
    reply = served.client.head("/v1/compare")
    assert (reply.status_code, reply.headers["allow"], reply.content) == (405, "POST", b"")


def test_a_reply_to_a_bug_has_the_same_headers(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh.pipeline, "compare", None)
    reply = fresh.client.post("/v1/compare", json=PAIR)
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "internal_error")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert "Traceback" not in reply.text


def directives(policy: str) -> dict[str, list[str]]:
    return {name: sources for name, *sources in (part.split() for part in policy.split(";"))}


def test_docs_may_run_its_own_files_and_nothing_else(served: Served) -> None:
    reply = served.client.get("/docs")
    policy = directives(reply.headers["Content-Security-Policy"])
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"], "the page reads /openapi.json and tries calls out"
    assert policy["script-src"] == policy["style-src"] == ["'self'"]
    assert re.findall(r"<script>|<style|style=", reply.text) == [], "the policy forbids what is inline"
    assert reply.headers["X-Frame-Options"] == "DENY"


def test_the_default_content_policy_allows_nothing() -> None:
    client = TestClient(ReplyHeadersMiddleware(HTMLResponse("<p>", headers={"Cache-Control": "max-age=60"})))
    reply = client.get("/")
    policy = directives(reply.headers["Content-Security-Policy"])
    assert policy["default-src"] == policy["frame-ancestors"] == ["'none'"]
    assert reply.headers["Cache-Control"] == "max-age=60", "what a page says itself stays"


def test_no_page_of_another_origin_may_call_unless_allowed(served: Served) -> None:
    reply = served.client.post("/v1/compare", json=PAIR, headers={"Origin": PAGES})
    assert "access-control-allow-origin" not in reply.headers
    assert served.client.options("/v1/compare", headers=PREFLIGHT).status_code == 405


@pytest.mark.parametrize("origin", [PAGES, "http://localhost:3000"])
def test_pages_of_allowed_origins_may_call(open_to_pages: Served, origin: str) -> None:
    preflight = open_to_pages.client.options(
        "/v1/compare",
        headers=PREFLIGHT | {"Origin": origin, "Access-Control-Request-Headers": "authorization,traceparent"},
    )
    assert preflight.status_code == 200
    reply = open_to_pages.client.post("/v1/compare", json=PAIR, headers={"Origin": origin})
    for answer in (preflight, reply):
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "X-Request-Id" in reply.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(
    "preflight",
    [
        {"Origin": "https://evil.example"},
        {"Access-Control-Request-Method": "DELETE"},
        {"Origin": PAGES + ".evil.example"},
    ],
)
def test_other_preflights_are_refused_as_json(open_to_pages: Served, preflight: dict[str, str]) -> None:
    reply = open_to_pages.client.options("/v1/compare", headers=PREFLIGHT | preflight)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "origin_refused")
    assert preflight.get("Origin", "-") not in reply.headers.get("access-control-allow-origin", "")


def test_a_star_allows_all_origins(bundle_folder: Path) -> None:
    with serve(Settings(model=bundle_folder, cors_origins="*")) as one:
        assert one.client.options("/v1/compare", headers=PREFLIGHT).headers["Access-Control-Allow-Origin"] == "*"


def test_a_preflight_needs_no_key_and_a_refusal_can_be_read_by_the_page(bundle_folder: Path, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.json", entry("one"))
    with serve(Settings(model=bundle_folder, api_keys_file=keys, cors_origins=PAGES)) as one:
        assert one.client.options("/v1/compare", headers=PREFLIGHT).status_code == 200
        reply = one.client.post("/v1/compare", json=PAIR, headers={"Origin": PAGES})
        assert reply.status_code == 401
        assert reply.headers["Access-Control-Allow-Origin"] == PAGES
