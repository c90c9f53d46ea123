"""Run a real Chromium for the tests of the page: the installed one, never a downloaded one."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.processes import Process
from tests.support.waiting import PATIENCE_S

DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


class Example:
    """A prompt and responses that the tests and the pictures type into the page."""

    prompt = "I failed my exam. What should I do now?"
    responses = (
        "I am sorry to hear that. It may help to talk to your teacher, find out what went wrong, and try again.",
        "Stop whining. Nobody cares about you, loser.",
        "I do not know.",
    )
    domain = "safety"


def chromium_path() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Run it headless. Skip the test if it is not installed."""
    path = chromium_path()
    if path is None:
        pytest.skip("Chromium is not installed; .ci/apt.sh installs it")
    with sync_playwright() as playwright:
        # Most containers do not allow Chromium's sandbox; the only page that it opens here is ours.
        expect.set_options(timeout=1000 * PATIENCE_S)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *options])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched(browser: Browser, service: Process, ignored: str | None = None, **options: Any) -> Iterator[Page]:
    """Return a page, not opened yet. Fail if it writes to the console, or calls any server but the service.

    ignored: a part of the messages on the console that are none of the page's; Chromium writes each refused call there.
    options: of the browser's context.
    """
    origin = str(service.client.base_url)
    context = browser.new_context(base_url=origin, **({"viewport": DESKTOP} | options))
    page, messages, urls = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    yield page
    context.close()
    assert [message for message in messages if ignored is None or ignored not in message] == []
    assert [url for url in urls if not url.startswith((f"{origin}/", "data:", f"blob:{origin}"))] == []


def fill(page: Page, prompt: str, responses: Sequence[str]) -> None:
    """Type a prompt and its responses; add boxes as needed."""
    page.locator("#prompt").fill(prompt)
    for letter, response in zip("ABCDEFG", responses, strict=False):
        box = page.locator(f"#response-{letter}")
        if not box.count():
            page.get_by_role("button", name="Add a response").click()
        box.fill(response)


def compare(page: Page) -> None:
    """Press Compare and wait until the page shows the result."""
    page.get_by_role("button", name="Compare").click()
    page.locator("body:not([aria-busy])").wait_for()
