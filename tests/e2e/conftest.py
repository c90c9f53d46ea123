"""What several tests in this folder use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


# Of one file of tests: while Playwright runs, its process can start no other event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a real Chromium. Most tests in this folder need none, so it is imported here."""
    from tests.e2e.browser import chromium

    with chromium() as one:
        yield one
