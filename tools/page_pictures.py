"""`python -m tools.page_pictures`: the pictures of the page in docs/, taken of a running starter model."""

import sys

from playwright.sync_api import Browser

from tests.conftest import REPOSITORY
from tests.e2e.browser import DESKTOP, EXAMPLE, PHONE, chromium, compare, fill
from tests.support.processes import STARTER, started

# What the pictures show, as in the README, whatever port the service got.
ADDRESS = "http://localhost:8000"
# Two answers side by side on a desk, three ranked on a phone.
PICTURES = {"desktop": (DESKTOP, 2), "phone": (PHONE, 3)}


def take(browser: Browser, name: str, scheme: str, folder: str) -> None:
    viewport, answers = PICTURES[name]
    page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page.goto(ADDRESS)
    fill(page, EXAMPLE["prompt"], EXAMPLE["answers"][:answers])
    page.get_by_label("Domain").select_option("reasoning")
    # The second time is what it costs; the first call of an engine takes longer.
    compare(page)
    compare(page)
    page.mouse.move(0, 0)
    suffix = "" if scheme == "light" else f"-{scheme}"
    page.screenshot(path=REPOSITORY / folder / f"page-{name}{suffix}.png", full_page=True)
    page.close()


def main(folder: str = "docs", *schemes: str) -> None:
    with (
        started(STARTER) as service,
        chromium(f"--host-resolver-rules=MAP localhost:8000 127.0.0.1:{service.port}") as browser,
    ):
        for name in PICTURES:
            for scheme in schemes or ("light",):
                take(browser, name, scheme, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
