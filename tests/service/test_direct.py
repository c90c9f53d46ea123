"""Test that routes answered without the framework answer as the framework does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from service.api.direct import DirectRoute, DirectRoutes, NotDirect
from service.app import create_api, enabled_routers
from service.dialects.table import ALL_DIALECTS
from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve

GROUP = {"prompt": "2 + 2?", "responses": ["4", "5", "a number"]}
TIMES = ("encode", "queue", "run", "total")


@contextmanager
def of_framework_alone(served: Served) -> Iterator[TestClient]:
    """Yield a client of the same application without direct routes."""
    app = create_api(served.state.settings)

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {"app": served.state}}, receive, send)

    yield TestClient(with_state, raise_server_exceptions=False)


def test_every_route_of_post_is_direct() -> None:
    settings = Settings(dialects=",".join(dialect.name for dialect in ALL_DIALECTS), api_keys_file="keys.json")
    routers = enabled_routers(settings)
    of_post = {
        route.path
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute) and route.methods == {"POST"}
    }
    assert DirectRoutes(create_api(settings), routers).paths == of_post - {"/admin/reload"}


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/compare", PAIR, {}),
        ("/v1/compare", PAIR, {"X-Request-Timeout-Ms": "60000"}),
        ("/v1/compare", PAIR, {"X-Request-Timeout-Ms": "0"}),
        ("/v1/compare", PAIR, {"X-Request-Timeout-Ms": "soon"}),
        ("/v1/compare", PAIR | {"swap": "never"}, {}),
        ("/v1/compare", PAIR | {"unknown": 1}, {}),
        ("/v1/compare", PAIR | {"model": "another"}, {}),
        ("/v1/compare", {}, {}),
        ("/v1/compare/batch", {"items": [PAIR, {"prompt": ""}, PAIR]}, {}),
        ("/v1/compare/batch?x=1", {"items": [PAIR]}, {}),
        ("/v1/rank", GROUP, {}),
        ("/v1/rewards", GROUP | {"responses": ["4"]}, {}),
        ("/v1/score", GROUP, {}),
        ("/v1/tokens", GROUP, {}),
    ],
)
def test_a_direct_reply_is_that_of_the_framework(
    served: Served, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    direct = served.client.post(path, json=body, headers=headers)
    with of_framework_alone(served) as client:
        framework = client.post(path, json=body, headers=headers)
    assert (direct.status_code, direct.json()) == (framework.status_code, framework.json())
    assert set(framework.headers) <= set(direct.headers)
    assert [name in direct.headers.get("Server-Timing", "") for name in TIMES] == [
        name in framework.headers.get("Server-Timing", "") for name in TIMES
    ]


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": 1, "a"', b"\xff", b'"text"', b"[" * 20])
def test_a_body_that_is_no_request_gets_the_reply_of_the_framework(served: Served, body: bytes) -> None:
    direct = served.client.post("/v1/compare", content=body)
    with of_framework_alone(served) as client:
        framework = client.post("/v1/compare", content=body, headers={"Content-Type": "application/json"})
    assert direct.status_code == framework.status_code or body == b"\xff"  # refused before it is parsed
    assert direct.status_code >= 400


def test_a_route_that_needs_more_of_the_framework_is_not_direct() -> None:
    router = APIRouter()

    @router.post("/of/{name}")
    async def of_path(name: str, body: dict[str, int]) -> None: ...

    @router.post("/text")
    async def of_optional(request: Request, body: dict[str, int] | None = None) -> None: ...

    @router.post("/thread")
    def in_thread(body: dict[str, int]) -> None: ...

    @router.post("/created", status_code=201)
    async def with_status(body: dict[str, int]) -> None: ...

    app = FastAPI()
    for route in router.routes:
        assert isinstance(route, APIRoute)
        with pytest.raises(NotDirect):
            DirectRoute(app, route)
    app.include_router(router)
    routes = DirectRoutes(app, [router])
    assert not routes.paths
    assert TestClient(routes).post("/created", json={"a": 1}).status_code == 201


def test_a_parameter_in_the_query_reaches_its_handler(bundle_folder: Path) -> None:
    with serve(Settings(model=bundle_folder, dialects="rerank")) as one:
        body = {"query": "2 + 2?", "documents": ["4", "5"]}
        assert one.client.post("/v1/rerank?domain=nothing", json=body).status_code == 422
        assert one.client.post("/v1/rerank?unknown=1", json=body).status_code == 422
        assert one.client.post("/v1/rerank", json=body).status_code == 200
