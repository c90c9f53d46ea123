"""Test the API reference in a real Chromium that reaches nothing but the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from service.keys import ApiKey, ApiKeys, hash_token
from tests.e2e.browser import DESKTOP, PHONE, watched
from tests.support.processes import STARTER, Process, started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service() -> Iterator[Process]:
    with started(STARTER, dialects="openrlhf,slime,verl,nemo-gym,rerank,vllm,sglang,llamafactory") as one:
        yield one


@contextmanager
def opened(browser: Browser, service: Process, path: str = "/docs", **options: Any) -> Iterator[Page]:
    with watched(browser, service, ignored="status of 4", **options) as page:
        page.goto(path)
        page.locator("#compare").wait_for()
        yield page


def status(operation: Locator) -> Locator:
    return operation.get_by_role("status")


def test_every_operation_of_the_document_is_shown_once(browser: Browser, service: Process) -> None:
    api = service.get("/openapi.json").json()
    expected = {one["operationId"] for of_path in api["paths"].values() for one in of_path.values()}
    with opened(browser, service) as page:
        shown = page.locator("article").evaluate_all("all => all.map(one => one.id)")
        links = page.locator("#contents a").evaluate_all("all => all.map(one => one.hash.slice(1))")
    assert sorted(shown) == sorted(links) == sorted(expected)
    assert len(shown) > 25


@pytest.mark.parametrize(
    "operation", ["compare", "compareBatch", "rank", "rewards", "countTokens", "listModels", "getModel"]
)
def test_an_example_is_sent_as_it_stands(browser: Browser, service: Process, operation: str) -> None:
    with opened(browser, service) as page:
        one = page.locator(f"#{operation}")
        one.get_by_role("button", name="Send the request").click()
        expect(status(one)).to_contain_text("200 OK")
        expect(one.get_by_role("region", name="Reply to")).to_contain_text("starter")


def test_an_example_is_chosen_edited_and_refused_with_its_type(browser: Browser, service: Process) -> None:
    with opened(browser, service, "/docs#compare") as page:
        one = page.locator("#compare")
        one.get_by_label("Example", exact=True).select_option(label="A dialogue of chat messages")
        body = one.get_by_label("Body", exact=True)
        expect(body).to_have_value(body.input_value())
        assert "Rayleigh" in body.input_value()
        body.fill('{"prompt": "p", "response_a": "x", "response_b": "y", "domain": "cooking"}')
        body.press("Tab")
        page.keyboard.press("Enter")
        expect(status(one)).to_contain_text("422")
        expect(one.get_by_role("region", name="Reply to")).to_contain_text("unknown_domain")
        body.fill("{")
        one.get_by_role("button", name="Send the request").click()
        expect(one.get_by_role("region", name="Reply to")).to_contain_text("invalid_json")


def test_fields_of_objects_and_errors_unfold(browser: Browser, service: Process) -> None:
    with opened(browser, service) as page:
        one = page.locator("#compare")
        one.get_by_text("Fields of ChatMessage").first.click()
        expect(one.get_by_role("table", name="Fields of ChatMessage").first).to_contain_text("tool_calls")
        one.get_by_text("Errors", exact=True).click()
        errors = one.get_by_role("table", name="Errors of compare")
        expect(errors).to_contain_text("unknown_model")
        expect(errors).to_contain_text("overloaded")
        expect(page.locator("#compare")).to_contain_text("here: chat, general, reasoning, safety")


def test_a_link_leads_to_an_operation(browser: Browser, service: Process) -> None:
    with opened(browser, service, "/docs#countTokens", reduced_motion="reduce") as page:
        expect(page.locator("#countTokens")).to_be_in_viewport()
        page.locator("#contents").get_by_text("/v1/rank", exact=True).click()
        expect(page.locator("#rank")).to_be_in_viewport()


def test_the_key_is_asked_for_where_the_service_needs_one(browser: Browser, tmp_path: Path) -> None:
    digest = hash_token(b"a key")
    key = ApiKey(name="me", sha256=digest, scopes=frozenset({"score"}), created=datetime(2026, 1, 1, tzinfo=UTC))
    file = tmp_path / "keys.json"
    file.write_text(ApiKeys(keys=(key,)).model_dump_json())
    file.chmod(0o600)
    with started(STARTER, api_keys_file=file) as guarded, opened(browser, guarded) as page:
        one = page.locator("#compare")
        one.get_by_role("button", name="Send the request").click()
        expect(one.get_by_role("region", name="Reply to")).to_contain_text("unauthorized")
        page.get_by_label("API key").fill("a key")
        one.get_by_role("button", name="Send the request").click()
        expect(status(one)).to_contain_text("200 OK")


def test_no_key_is_asked_for_where_none_is_needed(browser: Browser, service: Process) -> None:
    with opened(browser, service) as page:
        expect(page.get_by_label("API key")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_barrier_and_nothing_overflows(
    browser: Browser, service: Process, viewport: object, scheme: str
) -> None:
    with opened(browser, service, viewport=viewport, color_scheme=scheme, reduced_motion="reduce") as page:
        one = page.locator("#compare")
        one.get_by_role("button", name="Send the request").click()
        expect(status(one)).to_contain_text("200 OK")
        page.evaluate("document.querySelectorAll('#compare details').forEach(one => one.open = true)")
        expect(one.get_by_role("table", name="Fields of ChatMessage").first).to_be_visible()
        found = Axe().run(page).response["violations"]
        assert [f"{one['id']}: {one['nodes'][0]['html']}" for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
