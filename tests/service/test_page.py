"""Test the page's files over HTTP. tests/e2e/test_page.py tests the page in a browser."""

import re
from pathlib import Path

import pytest

from service.api.pages import FOLDER
from tests.service.conftest import Served
from tests.service.test_headers import directives
from tinyrm import __version__

TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
FILES = {"/": "text/html; charset=utf-8"} | {
    f"/page/{path.name}": TYPES[path.suffix] for path in FOLDER.iterdir() if path.suffix in TYPES
}


@pytest.mark.parametrize(("path", "kind"), FILES.items())
def test_a_file_is_sent_once_and_then_revalidated(served: Served, path: str, kind: str) -> None:
    first = served.client.get(path)
    assert first.status_code == 200
    assert first.headers["Content-Type"] == kind
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
        "font-src",
        "connect-src",
    }
    assert {name for name, sources in policy.items() if sources == ["'none'"]} == {
        "default-src",
        "base-uri",
        "form-action",
        "frame-ancestors",
    }
    assert len(policy) == 8


def test_the_page_refers_to_its_own_files_only(served: Served) -> None:
    addresses = set(re.findall(r'(?:src|href)="(?!#)([^"]+)"', served.client.get("/").text))
    assert {"page/app.js", "page/style.css", "page/logo.svg"} <= addresses
    for address in addresses:
        assert served.client.get(f"/{address}").status_code == 200, address


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.css")), ids=lambda path: path.name)
def test_a_style_loads_the_font_and_nothing_else(path: Path) -> None:
    assert set(re.findall(r"url\([^)]*|@import|https?:", path.read_text())) <= {"url(inter.woff2"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_a_module_imports_modules_of_the_page_and_makes_no_markup_of_texts(path: Path) -> None:
    text = path.read_text()
    imported = re.findall(r"""(?:\bfrom\s+|\bimport\s*\(?\s*)["']([^"']+)["']""", text)
    assert {name for name in imported if not (name.startswith("./") and (FOLDER / name).is_file())} == set()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)


@pytest.mark.parametrize(
    "path",
    [
        *("/page/", "/page", "/page/index.html", "/page/nowhere.js", "/page/app.js/", "/page/app.js/x"),
        *("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py"),
        *("/page/%2fetc%2fpasswd", "/page/app.js%00", "/page/APP.JS"),
    ],
)
def test_nothing_else_is_sent(served: Served, path: str) -> None:
    reply = served.client.get(path)
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found")


def test_the_page_knows_the_version_of_the_service(served: Served) -> None:
    assert served.client.get("/page/service.json").json() == {"version": __version__}
