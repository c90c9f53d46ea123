"""Run a real Chromium for the tests of the page: the installed one, never a downloaded one."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

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
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *options])
        try:
            yield browser
        finally:
            browser.close()


def fill(page: Page, prompt: str, responses: Sequence[str]) -> None:
    """Type a prompt and its responses; add boxes as needed."""
    page.get_by_label("Prompt").fill(prompt)
    boxes = page.get_by_role("textbox", name="Response ")
    while boxes.count() < len(responses):
        page.get_by_role("button", name="Add a response").click()
    for index, response in enumerate(responses):
        boxes.nth(index).fill(response)


def compare(page: Page) -> None:
    """Press Compare and wait until the page shows the result."""
    page.get_by_role("button", name="Compare").click()
    page.locator("body:not([aria-busy])").wait_for()
