"""A real Chromium for the tests of the page: the one of this machine, never a downloaded one."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


class Example:
    """What the tests and the pictures type into the page."""

    prompt = "Natalia sold 48 clips in April and half as many in May. How many in all?"
    responses = (
        "In May she sold 48 / 2 = 24. In all she sold 48 + 24 = 72 clips.",
        "In May she sold 48 * 2 = 96. In all she sold 48 + 96 = 144 clips.",
        "I do not know.",
    )


def chromium_path() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Run it headless. Skips the test if this machine has none."""
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium on this machine; `.ci/apt.sh` installs one")
    with sync_playwright() as playwright:
        # Containers rarely allow Chromium its sandbox; the only page it opens here is ours.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *options])
        try:
            yield browser
        finally:
            browser.close()


def fill(page: Page, prompt: str, responses: Sequence[str]) -> None:
    """Type a prompt and its responses, with as many boxes as that takes."""
    page.get_by_label("Prompt").fill(prompt)
    boxes = page.get_by_role("textbox", name="Answer ")
    while boxes.count() < len(responses):
        page.get_by_role("button", name="Add an answer").click()
    for index, response in enumerate(responses):
        boxes.nth(index).fill(response)


def compare(page: Page) -> None:
    """Press Compare and wait until the page shows the result."""
    page.get_by_role("button", name="Compare").click()
    page.locator("body:not([aria-busy])").wait_for()
