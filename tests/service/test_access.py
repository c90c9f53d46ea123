"""Test that every request has an id in reply and log, and one log line without its texts."""

import asyncio
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from starlette.testclient import TestClient

from service.http.access_log import AccessLogMiddleware
from service.http.context import RequestStats
from service.logs import configure
from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tests.service.test_auth import entry, write

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Lines:
    """Collect what the service logs, as the process does; a call takes all lines so far."""
    stream = io.StringIO()
    configure("info", "json")
    (ours,) = logging.getLogger().handlers
    cast("logging.StreamHandler[io.StringIO]", ours).setStream(stream)
    # The test's own client says what it asks for.
    return lambda: [line for line in map(json.loads, stream.getvalue().splitlines()) if "httpx" not in line["logger"]]


def of_requests(logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in logged if line["event"] == "request"]


def test_a_comparison_leaves_one_line_with_its_cost_and_without_its_texts(served: Served, lines: Lines) -> None:
    reply = served.client.post("/v1/compare", json=PAIR | {"prompt": "a private matter"})
    logged = lines()
    (line,) = of_requests(logged)
    assert 0 < line.pop("duration_s") < 10
    assert line.pop("timestamp")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "tinyrm.access",
        "method": "POST",
        "endpoint": "/v1/compare",
        "status": 200,
        "items": 1,
        "tokens": reply.json()["usage"]["tokens"],
        "request_id": reply.headers["X-Request-Id"],
    }
    assert "private" not in json.dumps(logged)


def test_a_batch_counts_its_items_and_tokens(served: Served, lines: Lines) -> None:
    reply = served.client.post("/v1/compare/batch", json={"items": [PAIR, PAIR, {"prompt": ""}]})
    (line,) = of_requests(lines())
    assert (line["items"], line["tokens"]) == (3, reply.json()["usage"]["tokens"])


def test_the_slowest_comparison_of_a_batch_is_logged() -> None:
    stats = RequestStats()
    for total in (0.2, 0.5, 0.3):
        stats.add(7, {"total": total})
    assert (stats.tokens, stats.stages) == (21, {"total": 0.5})


@pytest.mark.parametrize(
    ("method", "path", "line"),
    [
        ("GET", "/healthz", ("GET", "/healthz", 200)),
        ("GET", "/private-words", ("GET", "other", 404)),
        ("PRIVATE", "/v1/compare?private=words", ("other", "/v1/compare", 405)),
        ("POST", "/v1/compare", ("POST", "/v1/compare", 400)),
    ],
)
def test_refusals_have_a_line_without_texts_of_the_request(
    served: Served, lines: Lines, method: str, path: str, line: tuple[str, str, int]
) -> None:
    served.client.request(method, path, content=b"private words")
    logged = lines()
    (got,) = of_requests(logged)
    assert (got["method"], got["endpoint"], got["status"]) == line
    assert "private" not in json.dumps(logged).lower()
    assert "items" not in got


def test_without_the_access_log_there_is_no_line_but_an_id(bundle_folder: Path, lines: Lines) -> None:
    with serve(Settings(model=bundle_folder, access_log="off")) as quiet:
        assert quiet.client.get("/healthz").headers["X-Request-Id"]
        assert of_requests(lines()) == []


@pytest.mark.parametrize(
    "given", ["a", "0af7651916cd43dd8448eb211c80319c", "trainer:7/step=3+4@host.example_~", "x" * 128]
)
def test_a_short_plain_id_is_kept(served: Served, lines: Lines, given: str) -> None:
    reply = served.client.get("/healthz", headers={"X-Request-Id": given, "X-Call-Id": f"{given}-1"[-128:]})
    assert reply.headers["X-Request-Id"] == given
    assert reply.headers["X-Call-Id"] == f"{given}-1"[-128:]
    assert of_requests(lines())[0]["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "a{b}", "a\tb", "a,b", "<b>", "caf\u00e9"])
def test_any_other_id_is_replaced(served: Served, given: str) -> None:
    unsafe = given.encode("latin-1")
    reply = served.client.get("/healthz", headers={b"X-Request-Id": unsafe, b"X-Call-Id": unsafe})
    assert "X-Call-Id" not in reply.headers
    assert len(reply.headers["X-Request-Id"]) == 32
    assert int(reply.headers["X-Request-Id"], 16)


def test_generated_ids_differ(served: Served) -> None:
    assert len({served.client.get("/healthz").headers["X-Request-Id"] for _ in range(20)}) == 20


def test_every_line_of_a_request_has_its_id_and_no_other(
    fresh: Served, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def compare(*_: object, **__: object) -> None:
        structlog.get_logger("tinyrm").warning("inside")
        logging.getLogger("library").warning("of a library")
        raise KeyError("bug")

    monkeypatch.setattr(fresh.pipeline, "compare", compare)
    reply = fresh.client.post("/v1/compare", json=PAIR, headers={"X-Request-Id": "mine"})
    assert (reply.status_code, reply.headers["X-Request-Id"]) == (500, "mine")
    logged = lines()
    assert [line["event"] for line in logged] == ["inside", "of a library", "request"]
    assert {line["request_id"] for line in logged} == {"mine"}
    assert logged[-1]["status"] == 500


def ignore_metrics(*_: object) -> None:
    """Observe nothing."""


def test_no_context_of_the_previous_request_remains(lines: Lines) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        structlog.contextvars.bind_contextvars(client="somebody")

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}

    async def two_in_one_context() -> None:
        for _ in range(2):
            structlog.contextvars.bind_contextvars(left="over")
            await AccessLogMiddleware(app, frozenset(), ignore_metrics, is_logged=True)(dict(scope), None, None)  # type: ignore[arg-type]

    asyncio.run(two_in_one_context())
    assert [line.get("left") for line in of_requests(lines())] == [None, None]


def test_a_line_names_the_key_of_its_request(bundle_folder: Path, tmp_path: Path, lines: Lines) -> None:
    keys = write(tmp_path / "keys.json", entry("trainer", "token"))
    with serve(Settings(model=bundle_folder, api_keys_file=keys)) as guarded:
        for token in ("token", "wrong"):
            guarded.client.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
        guarded.client.get("/metrics", headers={"Authorization": "Bearer token"})
    logged = lines()
    assert [(line["status"], line.get("client")) for line in of_requests(logged)] == [
        (200, "trainer"),
        (401, None),
        (403, "trainer"),
    ]
    assert "token" not in {word for line in logged for word in str(line).split("'")}


def test_a_bug_reveals_only_its_request_id() -> None:
    async def bug(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("secret")

    client = TestClient(
        AccessLogMiddleware(bug, frozenset(), ignore_metrics, is_logged=True), raise_server_exceptions=False
    )
    reply = client.get("/")
    assert reply.status_code == 500
    assert "secret" not in reply.text
