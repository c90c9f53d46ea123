"""Test the page in a real Chromium with the starter model: by mouse, by keyboard, for screen readers."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from service.keys import ApiKey, ApiKeys, hash_token
from tests.e2e.browser import DESKTOP, PHONE, Example, chromium, compare, fill
from tests.support.processes import STARTER, Process, started

pytestmark = pytest.mark.slow

PROMPT, THREE = Example.prompt, list(Example.responses)
PAIR = THREE[:2]
ANY_VERDICT = re.compile("^(Too close to call|Leans [AB]|Clearly [AB])$")
HOSTILE = """<img src=x onerror="window.pwned=1"><script>window.pwned=1</script> it's `id` $HOME \\ "ü" 😀\n&lt;b&gt;"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def service() -> Iterator[Process]:
    with started(STARTER) as one:
        yield one


@contextmanager
def opened(browser: Browser, service: Process, **options: object) -> Iterator[Page]:
    """Open the page. Fail if it writes to the console, or sends a request to any server but the service."""
    origin = str(service.client.base_url)
    context = browser.new_context(viewport=options.pop("viewport", DESKTOP), base_url=origin, **options)
    page, messages, requests = context.new_page(), [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto("/")
    page.wait_for_load_state("networkidle")
    yield page
    context.close()
    assert messages == []
    assert [url for url in requests if not url.startswith((origin + "/", "data:"))] == []


@pytest.fixture
def page(browser: Browser, service: Process) -> Iterator[Page]:
    with opened(browser, service) as one:
        yield one


def verdict(reply: dict[str, Any]) -> str:
    """Return the heading of a reply to a comparison."""
    better = reply["preferred"].upper()
    return {"close": "Too close to call", "leaning": f"Leans {better}", "clear": f"Clearly {better}"}[
        reply["confidence"]
    ]


def test_two_responses_get_the_verdict_of_the_api(page: Page, service: Process) -> None:
    fill(page, PROMPT, PAIR)
    page.get_by_label("Domain").select_option(Example.domain)
    compare(page)
    body = {"prompt": PROMPT, "response_a": PAIR[0], "response_b": PAIR[1], "domain": Example.domain}
    reply = service.post("/v1/compare", body).json()
    result = page.locator("#result")
    expect(result.get_by_role("heading", level=2)).to_have_text(verdict(reply))
    expect(page.locator("#surety")).to_contain_text(f"for response {reply['preferred'].upper()}")
    expect(page.locator("#share-a")).to_have_text(f"A {reply['probability_a']:.1%}".replace("%", " %"))
    expect(page.locator("#share-b")).to_have_text(f"{reply['probability_b']:.1%} B".replace("%", " %"))
    expect(page.get_by_role("status")).to_contain_text(f"{verdict(reply)}. The reply took")
    facts = page.locator("#facts")
    for fact in (reply["model"], f"{reply['usage']['gflops']:.2f} GFLOPs", "Truncated"):
        expect(facts).to_contain_text(fact)


def test_a_model_that_reads_one_response_has_no_orders(browser: Browser, response_bundle_folder: Path) -> None:
    with started(response_bundle_folder) as one, opened(browser, one) as page:
        fill(page, PROMPT, PAIR)
        compare(page)
        expect(page.locator("#surety")).to_contain_text("from the score of each response by itself")
        expect(page.locator("#by-order")).to_be_hidden()
        expect(page.locator("#facts")).to_contain_text("Sequences")
        fill(page, PROMPT, THREE)
        compare(page)
        expect(page.locator("#surety")).to_have_text("Each response was scored by itself.")
        expect(page.locator("#facts")).not_to_contain_text("Comparisons")


def test_a_model_that_reads_sets_has_no_orders(browser: Browser, set_bundle_folder: Path) -> None:
    with started(set_bundle_folder) as one, opened(browser, one) as page:
        fill(page, PROMPT, PAIR)
        compare(page)
        expect(page.locator("#surety")).to_contain_text("from both responses beside each other")
        expect(page.locator("#by-order")).to_be_hidden()
        fill(page, PROMPT, THREE)
        compare(page)
        expect(page.locator("#surety")).to_have_text("All responses were read beside each other.")
        expect(page.locator("#facts")).not_to_contain_text("Comparisons")


@pytest.mark.parametrize(
    ("confidence", "preferred", "heading"),
    [("close", "a", "Too close to call"), ("leaning", "b", "Leans B"), ("clear", "a", "Clearly A")],
)
def test_the_heading_says_how_sure_the_verdict_is(page: Page, confidence: str, preferred: str, heading: str) -> None:
    def reworded(route: Route) -> None:
        reply = route.fetch()
        route.fulfill(response=reply, json=reply.json() | {"confidence": confidence, "preferred": preferred})

    page.route("**/v1/compare", reworded)
    fill(page, PROMPT, PAIR)
    compare(page)
    expect(page.get_by_role("heading", level=2)).to_have_text(heading)
    expect(page.get_by_role("status")).to_contain_text(f"{heading}. The reply took")


def test_the_bar_is_as_long_as_the_probability(page: Page, service: Process) -> None:
    fill(page, PROMPT, PAIR)
    compare(page)
    share = page.locator("#bar").evaluate("bar => getComputedStyle(bar).getPropertyValue('--share')")
    assert f"A {share}".replace("%", " %") == page.locator("#share-a").inner_text()


def test_each_order_is_shown_by_itself(browser: Browser, bundle_folder: Path) -> None:
    with started(bundle_folder) as of_pairs, opened(browser, of_pairs) as page:
        fill(page, PROMPT, PAIR)
        compare(page)
        alone = {"prompt": PROMPT, "swap": "off", "domain": "general"}
        forward = of_pairs.post("/v1/compare", alone | {"response_a": PAIR[0], "response_b": PAIR[1]}).json()
        backward = of_pairs.post("/v1/compare", alone | {"response_a": PAIR[1], "response_b": PAIR[0]}).json()
        rows = page.locator("#orders li")
        expect(rows).to_have_count(2)
        expect(rows.nth(0)).to_contain_text(f"A {100 * forward['probability_a']:.1f} %")
        expect(rows.nth(1)).to_contain_text(f"A {100 * backward['probability_b']:.1f} %")


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    for text in (PROMPT, *PAIR):
        page.keyboard.press("Tab")
        while page.evaluate("document.activeElement.tagName") != "TEXTAREA":
            page.keyboard.press("Tab")
        page.keyboard.type(text)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("heading", level=2)).to_have_text(ANY_VERDICT)
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"domain", "key", "compare", "add", "copy", "curl"} <= reached


def test_an_empty_box_gets_the_focus_and_nothing_is_sent(page: Page) -> None:
    fill(page, PROMPT, [PAIR[0], ""])
    page.get_by_role("button", name="Compare").click()
    assert page.evaluate("document.activeElement.id") == "response-B"
    expect(page.locator("#result")).to_be_hidden()


def test_three_responses_are_ranked(page: Page, service: Process) -> None:
    fill(page, PROMPT, THREE)
    compare(page)
    reply = service.post("/v1/rank", {"prompt": PROMPT, "responses": THREE, "swap": "on", "domain": "general"}).json()
    rows = page.locator("#ranks li")
    expect(rows).to_have_count(3)
    for row, index in zip(rows.all(), reply["order"], strict=True):
        expect(row.locator(".name")).to_have_text(f"Response {'ABC'[index]}")
        expect(row.locator(".text")).to_have_text(THREE[index])
        expect(row.locator(".figure")).to_contain_text(f"{abs(reply['strengths'][index]):.2f} ±")
    expect(page.locator("#pair")).to_be_hidden()
    places = [float(row.evaluate("row => parseFloat(row.style.getPropertyValue('--at'))")) for row in rows.all()]
    assert places == sorted(places, reverse=True), "the best is the furthest to the right"


def test_a_response_can_be_removed_and_names_close_up(page: Page) -> None:
    fill(page, PROMPT, THREE)
    page.get_by_role("button", name="Remove response B").click()
    boxes = page.get_by_role("textbox", name="Response ")
    assert [box.input_value() for box in boxes.all()] == [THREE[0], THREE[2]]
    expect(page.get_by_role("textbox", name="Response B")).to_have_value(THREE[2])
    expect(page.get_by_role("textbox", name="Response B")).to_be_focused()
    expect(page.get_by_role("button", name="Remove")).to_have_count(0)


def test_truncated_tokens_are_shown(page: Page, service: Process) -> None:
    fill(page, PROMPT, [PAIR[0], "and then some more " * 2000])
    compare(page)
    truncated = service.post(
        "/v1/compare", {"prompt": PROMPT, "response_a": PAIR[0], "response_b": "and then some more " * 2000}
    ).json()["truncated"]
    assert truncated["response_b"] > 1000
    expect(page.locator("#facts")).to_contain_text(f"B {truncated['response_b']:,} tokens")


@pytest.mark.parametrize("responses", [PAIR, THREE], ids=["compare", "rank"])
def test_the_curl_command_works(page: Page, responses: list[str]) -> None:
    fill(page, HOSTILE, [HOSTILE, *responses[1:]])
    compare(page)
    command = page.locator("#curl").text_content()
    assert command
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30)
    reply = json.loads(done.stdout)
    heading = page.get_by_role("heading", level=2)
    best = f"Response {'ABC'[reply['order'][0]]} is the best of 3" if "order" in reply else verdict(reply)
    expect(heading).to_have_text(best)


def test_copy_puts_the_curl_command_on_the_clipboard(browser: Browser, service: Process) -> None:
    with opened(browser, service, permissions=["clipboard-read", "clipboard-write"]) as page:
        fill(page, PROMPT, PAIR)
        compare(page)
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("status")).to_have_text("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == page.locator("#curl").text_content()


@pytest.mark.parametrize("responses", [2, 3])
def test_markup_stays_text(page: Page, responses: int) -> None:
    fill(page, HOSTILE, [HOSTILE] * (responses - 1) + ["other"])
    compare(page)
    expect(page.locator("#curl")).to_contain_text("<script>window.pwned=1</script>")
    if responses == 3:
        expect(page.locator("#ranks")).to_contain_text("<img src=x")
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script").count() == 0


def test_a_changed_text_marks_the_result_as_outdated(page: Page) -> None:
    fill(page, PROMPT, PAIR)
    compare(page)
    expect(page.locator("#stale")).to_be_hidden()
    page.get_by_role("textbox", name="Response A").fill("Something else.")
    expect(page.locator("#stale")).to_be_visible()
    compare(page)
    expect(page.locator("#stale")).to_be_hidden()


def test_an_error_of_the_service_is_shown_and_a_key_resolves_it(browser: Browser, tmp_path: Path) -> None:
    """Do not check the console: Chromium itself writes every 401 there."""
    key = ApiKey(name="me", sha256=hash_token(b"sesame"), scopes=frozenset(("score",)), created=datetime.now(UTC))
    keys = tmp_path / "keys.json"
    keys.write_text(ApiKeys(keys=(key,)).model_dump_json())
    with started(STARTER, api_keys_file=keys) as guarded:
        page = browser.new_page()
        page.goto(str(guarded.client.base_url))
        expect(page.locator("#serving")).to_have_text("This service needs an API key.")
        fill(page, PROMPT, PAIR)
        compare(page)
        expect(page.get_by_role("alert")).to_have_text("unauthorized send a key: Authorization: Bearer <key>")
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("sesame")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("heading", level=2)).to_have_text(ANY_VERDICT)
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator("#curl")).to_contain_text("$TINYRM_API_KEY")
        expect(page.locator("#curl")).not_to_contain_text("sesame")
        stored = "[localStorage.length, sessionStorage.length, document.cookie, location.search]"
        assert page.evaluate(stored) == [0, 0, "", ""]
        page.close()


def test_a_service_that_has_stopped_is_shown_as_an_error(browser: Browser) -> None:
    with started(STARTER) as leaving:
        page = browser.new_page()
        page.goto(str(leaving.client.base_url))
        fill(page, PROMPT, PAIR)
        leaving.stop()
    compare(page)
    expect(page.get_by_role("alert")).to_contain_text("no_reply The service did not reply")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_barrier_and_nothing_overflows(
    browser: Browser, service: Process, viewport: object, scheme: str
) -> None:
    with opened(browser, service, viewport=viewport, color_scheme=scheme) as page:
        assert barriers(page) == []
        page.get_by_role("button", name="Use an example").click()
        compare(page)
        assert barriers(page) == []
        assert width_overflow(page) <= 0, "nothing makes the page scroll sideways"
        fill(page, PROMPT, THREE)
        compare(page)
        expect(page.locator("#ranks li")).to_have_count(3)
        assert barriers(page) == []
        assert width_overflow(page) <= 0


def barriers(page: Page) -> list[str]:
    """Return the serious and critical findings of axe-core."""
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


def width_overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_reduced_motion_is_respected(browser: Browser, service: Process) -> None:
    script = "getComputedStyle(document.querySelector('#compare')).transitionDuration"
    with opened(browser, service, reduced_motion="reduce") as page:
        assert page.evaluate(script) == "0s"
    with opened(browser, service, reduced_motion="no-preference") as page:
        assert page.evaluate(script) != "0s"
