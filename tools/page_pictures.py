"""python -m tools.page_pictures: take the pictures of the page in docs/images, of a service with the starter."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, ViewportSize

from tests.e2e.browser import DESKTOP, PHONE, Example, chromium, compare, fill
from tests.support.processes import STARTER, started
from tinyrm.command_line import parse

# The address in the pictures, as in the README, whatever port the service has.
ADDRESS = "http://localhost:8000"
# Two responses side by side on a desktop, three ranked on a phone.
PICTURES = {"desktop": (DESKTOP, 2), "phone": (PHONE, 3)}

Scheme = Literal["light", "dark"]


@dataclass(frozen=True)
class Options:
    """Take the pictures of the page, of a service with the starter."""

    folder: Path = Path("docs/images")
    """Folder for the pictures."""
    schemes: tuple[Scheme, ...] = ("light",)
    """Colour schemes to show."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m tools.page_pictures")
    with (
        started(STARTER) as service,
        chromium(f"--host-resolver-rules=MAP localhost:8000 127.0.0.1:{service.port}") as browser,
    ):
        for name in PICTURES:
            for scheme in options.schemes:
                take(browser, name, scheme, options.folder)
    return 0


def take(browser: Browser, name: str, scheme: Scheme, folder: Path) -> None:
    size, responses = PICTURES[name]
    viewport = ViewportSize(width=size["width"], height=size["height"])
    page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page.goto(ADDRESS)
    fill(page, Example.prompt, Example.responses[:responses])
    page.get_by_label("Domain").select_option(Example.domain)
    # The second call shows the usual time; the first call of an engine takes longer.
    compare(page)
    compare(page)
    page.mouse.move(0, 0)
    suffix = "" if scheme == "light" else f"-{scheme}"
    page.screenshot(path=folder / f"page-{name}{suffix}.png", full_page=True)
    page.close()


if __name__ == "__main__":
    sys.exit(main())
