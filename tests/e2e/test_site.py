"""The documentation site: built as `make docs` builds it, and searched in a real browser."""

import functools
import http.server
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.conftest import REPOSITORY
from tests.e2e.browser import DESKTOP, chromium
from tools import site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    site.main()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(REPOSITORY / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_search_finds_a_setting_and_nothing_is_loaded_from_elsewhere(address: str) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport=DESKTOP)
        elsewhere: list[str] = []
        page.on("request", lambda sent: None if sent.url.startswith(address) else elsewhere.append(sent.url))
        page.goto(address)
        page.get_by_role("button", name="Search").first.click()
        expect(page.locator("input:focus")).to_be_visible()
        page.keyboard.type("TINYRM_MAX_WAIT_S")
        page.get_by_role("link", name="Settings").first.wait_for()
        assert [url for url in elsewhere if not url.startswith(("data:", "blob:"))] == []
