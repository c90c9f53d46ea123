"""Test the page's files over HTTP. tests/e2e/test_page.py tests the page in a browser."""

import re

import pytest

from tests.service.conftest import Served
from tests.service.test_headers import directives

FILES = {"/": "text/html", "/page/app.js": "javascript", "/page/style.css": "text/css"}


@pytest.mark.parametrize(("path", "kind"), FILES.items())
def test_a_file_is_sent_once_and_then_revalidated(served: Served, path: str, kind: str) -> None:
    first = served.client.get(path)
    assert first.status_code == 200
    assert kind in first.headers["Content-Type"]
    assert first.headers["Cache-Control"] == "no-cache"
    assert first.headers["X-Content-Type-Options"] == "nosniff"
    again = served.client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["Cache-Control"] == "no-cache"
    assert served.client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


def test_the_page_may_run_its_own_files_and_call_this_service_and_nothing_else(served: Served) -> None:
    reply = served.client.get("/")
    assert reply.headers["X-Frame-Options"] == "DENY"
    policy = directives(reply.headers["Content-Security-Policy"])
    assert policy.pop("img-src") == ["'self'", "data:"]
    assert {name for name, sources in policy.items() if sources == ["'self'"]} == {
        "script-src",
        "style-src",
        "connect-src",
    }
    assert {name for name, sources in policy.items() if sources == ["'none'"]} == {
        "default-src",
        "base-uri",
        "form-action",
        "frame-ancestors",
    }
    assert len(policy) == 7


def test_the_page_refers_to_its_own_files_only(served: Served) -> None:
    addresses = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', served.client.get("/").text)
    assert set(addresses) == {"page/app.js", "page/style.css", "docs"}
    for address in addresses:
        assert served.client.get(f"/{address}").status_code == 200
    assert not re.findall(r"url\(|@import|https?:", served.client.get("/page/style.css").text)
    assert not re.findall(r"https?:|innerHTML|insertAdjacent|eval", served.client.get("/page/app.js").text)


@pytest.mark.parametrize("path", ["/page/", "/page/../app.py", "/page/%2e%2e/app.py", "/page/index.html", "/page"])
def test_nothing_else_is_sent(served: Served, path: str) -> None:
    reply = served.client.get(path)
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found")
