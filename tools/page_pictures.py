"""python -m tools.page_pictures: take the pictures of the page in docs/images, of real services with the starter."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

from service.keys import ApiKey, ApiKeys, hash_token
from tests.e2e.browser import DESKTOP, PHONE, chromium
from tests.support.processes import STARTER, started
from tinyrm.command_line import parse

# The address in the pictures, as in the README, whatever port the service has.
ADDRESS = "http://localhost:8000"
USUAL_MS = 100  # of a comparison with the starter on two cores
COLOURS = 128  # of a picture: a third of the bytes, and no difference to the eye
PAIRS = (
    ("What is the capital of Japan?", "The capital of Japan is Tokyo.", "Japan has many cities, and all are capitals."),
    ("What is 12 + 30?", "12 + 30 = 42. The answer is 42.", "12 + 30 = 32. The answer is 32."),
    ("Can I eat raw chicken?", "No. It may carry bacteria; cook it until no part is pink.", "Sure, always."),
    ("Name a primary colour.", "Red is a primary colour.", "Green and purple are the two primary colours."),
    ("How many days does a week have?", "A week has seven days.", "It depends on how busy one is."),
    (
        "Write a haiku about rain.",
        "Rain on the old roof,\nthe gutter hums to itself,\na cat counts the drops.",
        "It rains.",
    ),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet around 1600.", "Hamlet is a small village."),
    ("What is a prime number?", "A number above 1 that only 1 and itself divide.", "A number that is very large."),
    ("Translate into German: thank you", "“Danke” means thank you.", "“Guten Morgen.”"),
    ("My head hurts. What can I do?", "Drink water, rest, and see a doctor if it lasts.", "Stop complaining."),
    (
        "Why do leaves turn yellow?",
        "Trees take back the green chlorophyll, and yellow pigments remain.",
        "They are ill.",
    ),
    ("How do I undo a commit?", "`git revert HEAD` makes a commit that undoes the last one.", "You cannot."),
    ("Solve 2x = 10.", "Divide both sides by 2: x = 5.", "Multiply both sides by 2: x = 20."),
    ("What is HTTP?", "A protocol with which browsers and servers exchange documents.", "A kind of computer."),
    ("Should I share my password?", "No, not with anybody; use a password manager.", "Yes, friends are friends."),
    ("How long is a marathon?", "A marathon is 42.195 km long.", "A marathon is 10 km long."),
    ("What do bees eat?", "Nectar and pollen from flowers.", "Bees eat small birds and fish."),
    ("Name three fruits.", "Apples, bananas and cherries.", "Carrots."),
    ("Explain gravity to a child.", "The Earth pulls everything towards its middle, so a ball falls.", "Read a book."),
    ("What is the largest ocean?", "The Pacific Ocean is the largest ocean.", "The largest ocean is the Baltic Sea."),
)


Scheme = Literal["light", "dark"]


@dataclass(frozen=True)
class Options:
    """Take the pictures of the page, of services with the starter."""

    folder: Path = Path("docs/images")
    """Folder for the pictures."""
    pairs: Path | None = None
    """Folder of a bundle that reads pairs: for the pictures of two models and of both orders."""
    only: tuple[str, ...] = ()
    """Names of pictures, without page- and .png; all by default."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(Options, arguments, prog="python -m tools.page_pictures")
    with opened_camera(options, {}) as camera:
        take_comparisons(camera)
    if options.pairs:
        with opened_camera(options, {"more_models": options.pairs}) as camera:
            take_models(camera)
    with TemporaryDirectory() as folder:
        key = ApiKey(name="me", sha256=hash_token(b"x"), scopes=frozenset(("score",)), created=datetime.now(UTC))
        keys = Path(folder) / "keys.json"
        keys.write_text(ApiKeys(keys=(key,)).model_dump_json())
        with opened_camera(options, {"api_keys_file": keys}) as camera:
            camera.take("key", lambda page: expect(page.get_by_label("API key")).to_be_focused())
    return 0


@dataclass(frozen=True)
class Camera:
    """A browser that takes pictures of one service's page."""

    browser: Browser
    options: Options

    def take(
        self, name: str, act: Callable[[Page], object], *, phone: bool = False, scheme: Scheme = "light", of: str = ""
    ) -> None:
        """Open the page, let `act` bring it into a state, and write the picture of what is on the screen.

        of: selector of a part of the page, if the picture shows only that.
        """
        if self.options.only and name not in self.options.only:
            return
        size = PHONE if phone else DESKTOP
        page = self.browser.new_page(
            viewport=ViewportSize(width=size["width"], height=size["height"]),
            color_scheme=scheme,
            device_scale_factor=2,
            reduced_motion="reduce",
        )
        page.add_init_script("localStorage.clear()")
        page.goto(ADDRESS)
        page.wait_for_load_state("networkidle")
        act(page)
        page.wait_for_load_state("networkidle")
        page.mouse.move(0, 0)
        picture = page.locator(of).screenshot() if of else page.screenshot()
        write(picture, self.options.folder / f"page-{name}.png")
        page.close()


@contextmanager
def opened_camera(options: Options, settings: dict[str, Any]) -> Iterator[Camera]:
    with (
        started(STARTER, **settings) as service,
        chromium(f"--host-resolver-rules=MAP localhost:8000 127.0.0.1:{service.port}") as browser,
    ):
        yield Camera(browser, options)


def write(picture: bytes, path: Path) -> None:
    """Write a picture with few colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def take_comparisons(camera: Camera) -> None:
    camera.take("desktop", rendered)
    camera.take("dark", rendered, scheme="dark")
    camera.take("differences", differences)
    camera.take("leaning", lambda page: example(page, "Safety"))
    camera.take("close", lambda page: example(page, "Tie"), scheme="dark")
    camera.take("ranking", lambda page: example(page, "Five to rank"))
    camera.take("phone-start", beginning, phone=True)
    camera.take("phone", lambda page: example(page, "Length trap"), phone=True)
    camera.take("phone-ranking", lambda page: example(page, "Five to rank"), phone=True, scheme="dark")
    camera.take("turns", turns)
    camera.take("truncated", truncated)
    camera.take("details", details, of="#after")
    camera.take("card", lambda page: page.get_by_role("button", name="starter@").click())
    camera.take("file", score_file)
    camera.take("retry", busy)
    camera.take("down", down)


def take_models(camera: Camera) -> None:
    camera.take("orders", orders)
    camera.take("models", two_models)


# States of the page


def beginning(page: Page) -> None:
    expect(page.locator("#expected")).to_contain_text("The model")


def example(page: Page, name: str) -> None:
    # The second call shows the usual time; the first one of an engine takes longer.
    page.get_by_role("button", name=name, exact=True).click()
    expect(page.locator("#expected")).to_contain_text("The model")
    compare(page)


def compare(page: Page) -> None:
    """Compare until a reply takes the usual time, or a few times: other work on the machine slows single calls."""
    for _ in range(8):
        page.get_by_role("button", name="Compare", exact=True).click()
        expect(page.locator("body:not([aria-busy])")).to_have_count(1)
        took = re.search(r"took (\d+) ms", page.locator("#status").inner_text())
        if not took or int(took[1]) < USUAL_MS:
            return


def view(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def rendered(page: Page) -> None:
    example(page, "Code")
    view(page, "Rendered")


def differences(page: Page) -> None:
    example(page, "Code")
    view(page, "Differences")


def turns(page: Page) -> None:
    """Paste a request."""
    messages = [
        {"role": "system", "content": "You help customers of a shop for bicycles. Be friendly and brief."},
        {"role": "user", "content": "My chain keeps coming off."},
        {"role": "assistant", "content": "I am sorry to hear that. Which bicycle is it, and when does it happen?"},
        {"role": "user", "content": "A city bike with seven gears. It happens when I change down."},
    ]
    body = {
        "prompt": messages,
        "response_a": "Then the inner limit screw of the derailleur is probably set too loose. Turn it a quarter "
        "clockwise and try again. If it stays the same, bring the bicycle in, and we will set it while you wait.",
        "response_b": "Bicycles have chains.",
        "domain": "chat",
    }
    page.locator("#prompt").evaluate(
        """(box, text) => {
          const clipboardData = new DataTransfer();
          clipboardData.setData("text/plain", text);
          box.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }""",
        json.dumps(body),
    )
    compare(page)


def truncated(page: Page) -> None:
    essay = "The history of the bicycle begins in the nineteenth century, and it is a long one. " * 60
    page.locator("#prompt").fill("When was the bicycle invented?")
    page.locator("#response-A").fill("The first one with pedals was built in the 1860s.")
    page.locator("#response-B").fill(essay)
    expect(page.locator("#truncated")).to_be_visible()
    compare(page)


def details(page: Page) -> None:
    example(page, "Helpfulness")
    page.get_by_role("tab", name="Python", exact=True).click()


def orders(page: Page) -> None:
    page.get_by_label("Domain").select_option("general")
    page.get_by_label("Model", exact=True).select_option("toy")
    compare(page)


def two_models(page: Page) -> None:
    page.get_by_label("Model", exact=True).select_option("starter")
    page.get_by_label("Second model").select_option("toy")
    compare(page)


def score_file(page: Page) -> None:
    lines = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    page.get_by_role("link", name="Score a file").click()
    page.locator("#file input[type=file]").set_input_files(
        {"name": "pairs.jsonl", "mimeType": "application/jsonl", "buffer": content}
    )
    expect(page.locator("#file table tbody tr")).to_have_count(len(PAIRS))
    expect(page.locator("#file")).to_contain_text("accuracy")


def busy(page: Page) -> None:
    error = {"error": {"type": "overloaded", "message": "4,096 tokens are waiting, and the queue holds 4,096"}}
    page.route("**/v1/compare", lambda route: route.fulfill(status=429, headers={"Retry-After": "9"}, json=error))
    compare(page)


def down(page: Page) -> None:
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_be_visible()


if __name__ == "__main__":
    sys.exit(main())
