"""The page in a real Chromium, on the real starter model: what people see, with the mouse, by keyboard, read aloud."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from service.keys import ApiKey, ApiKeys, hash_token
from tests.e2e.browser import DESKTOP, PHONE, Example, chromium, compare, fill
from tests.support.processes import STARTER, Process, started

pytestmark = pytest.mark.slow

PROMPT, ANSWERS = Example.prompt, list(Example.responses)
PAIR, THREE = ANSWERS[:2], ANSWERS
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
    """The page, at rest. Fails if it said anything to the console, or asked anybody but the service for anything."""
    origin = str(service.client.base_url)
    context = browser.new_context(viewport=options.pop("viewport", DESKTOP), base_url=origin, **options)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/")
    page.wait_for_load_state("networkidle")
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((origin + "/", "data:"))] == []


@pytest.fixture
def page(browser: Browser, service: Process) -> Iterator[Page]:
    with opened(browser, service) as one:
        yield one


def test_two_answers_get_the_verdict_of_the_api(page: Page, service: Process) -> None:
    fill(page, PROMPT, PAIR)
    page.get_by_label("Domain").select_option("reasoning")
    compare(page)
    body = {"prompt": PROMPT, "response_a": PAIR[0], "response_b": PAIR[1], "domain": "reasoning"}
    said = service.post("/v1/compare", body).json()
    result = page.get_by_role("region", name="Answer")
    expect(result.get_by_role("heading", level=2)).to_have_text(f"Answer {said['preferred'].upper()} is better")
    expect(page.locator("#share-a")).to_have_text(f"A {said['probability_a']:.1%}".replace("%", " %"))
    expect(page.locator("#share-b")).to_have_text(f"{said['probability_b']:.1%} B".replace("%", " %"))
    expect(page.get_by_role("status")).to_contain_text("is better. Answered in")
    facts = page.locator("#facts")
    for fact in (said["model"], f"{said['usage']['gflops']:.2f} GFLOPs", "Cut to fit"):
        expect(facts).to_contain_text(fact)


def test_the_bar_is_as_long_as_the_probability(page: Page, service: Process) -> None:
    fill(page, PROMPT, PAIR)
    compare(page)
    share = page.locator("#bar").evaluate("bar => getComputedStyle(bar).getPropertyValue('--share')")
    assert f"A {share}".replace("%", " %") == page.locator("#share-a").inner_text()


def test_each_order_is_shown_by_itself(page: Page, service: Process) -> None:
    fill(page, PROMPT, PAIR)
    compare(page)
    alone = {"prompt": PROMPT, "swap": "off", "domain": "general"}
    forward = service.post("/v1/compare", alone | {"response_a": PAIR[0], "response_b": PAIR[1]}).json()
    backward = service.post("/v1/compare", alone | {"response_a": PAIR[1], "response_b": PAIR[0]}).json()
    rows = page.locator("#orders li")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text(f"A {100 * forward['probability_a']:.1f} %")
    expect(rows.nth(1)).to_contain_text(f"A {100 * backward['probability_b']:.1f} %")


def test_by_keyboard_alone(page: Page) -> None:
    for text in (PROMPT, *PAIR):
        page.keyboard.press("Tab")
        while page.evaluate("document.activeElement.tagName") != "TEXTAREA":
            page.keyboard.press("Tab")
        page.keyboard.type(text)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("heading", level=2)).to_contain_text("is better")
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"domain", "key", "compare", "add", "copy", "curl"} <= reached


def test_an_empty_box_is_asked_for_and_nothing_is_sent(page: Page) -> None:
    fill(page, PROMPT, [PAIR[0], ""])
    page.get_by_role("button", name="Compare").click()
    assert page.evaluate("document.activeElement.id") == "answer-B"
    expect(page.locator("#result")).to_be_hidden()


def test_three_answers_are_ranked(page: Page, service: Process) -> None:
    fill(page, PROMPT, THREE)
    compare(page)
    said = service.post("/v1/rank", {"prompt": PROMPT, "responses": THREE, "swap": "on", "domain": "general"}).json()
    rows = page.locator("#ranks li")
    expect(rows).to_have_count(3)
    for row, index in zip(rows.all(), said["order"], strict=True):
        expect(row.locator(".name")).to_have_text(f"Answer {'ABC'[index]}")
        expect(row.locator(".text")).to_have_text(THREE[index])
        expect(row.locator(".figure")).to_contain_text(f"{abs(said['strengths'][index]):.2f} ±")
    expect(page.locator("#pair")).to_be_hidden()
    places = [float(row.evaluate("row => parseFloat(row.style.getPropertyValue('--at'))")) for row in rows.all()]
    assert places == sorted(places, reverse=True), "the best is the furthest to the right"


def test_an_answer_can_go_again_and_names_close_up(page: Page) -> None:
    fill(page, PROMPT, THREE)
    page.get_by_role("button", name="Remove answer B").click()
    boxes = page.get_by_role("textbox", name="Answer ")
    assert [box.input_value() for box in boxes.all()] == [THREE[0], THREE[2]]
    expect(page.get_by_role("textbox", name="Answer B")).to_have_value(THREE[2])
    expect(page.get_by_role("textbox", name="Answer B")).to_be_focused()
    expect(page.get_by_role("button", name="Remove")).to_have_count(0)


def test_what_was_cut_is_told(page: Page, service: Process) -> None:
    fill(page, PROMPT, [PAIR[0], "and then some more " * 2000])
    compare(page)
    cut = service.post(
        "/v1/compare", {"prompt": PROMPT, "response_a": PAIR[0], "response_b": "and then some more " * 2000}
    ).json()["truncated"]
    assert cut["response_b"] > 1000
    expect(page.locator("#facts")).to_contain_text(f"B {cut['response_b']:,} tokens")


@pytest.mark.parametrize("answers", [PAIR, THREE], ids=["compare", "rank"])
def test_the_curl_shown_works(page: Page, answers: list[str]) -> None:
    fill(page, HOSTILE, [HOSTILE, *answers[1:]])
    compare(page)
    command = page.locator("#curl").text_content()
    assert command
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30)
    reply = json.loads(done.stdout)
    heading = page.get_by_role("heading", level=2)
    best = reply["preferred"].upper() if "preferred" in reply else "ABC"[reply["order"][0]]
    expect(heading).to_contain_text(f"Answer {best} is")


def test_copy_puts_the_curl_on_the_clipboard(browser: Browser, service: Process) -> None:
    with opened(browser, service, permissions=["clipboard-read", "clipboard-write"]) as page:
        fill(page, PROMPT, PAIR)
        compare(page)
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("status")).to_have_text("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == page.locator("#curl").text_content()


@pytest.mark.parametrize("answers", [2, 3])
def test_markup_stays_text(page: Page, answers: int) -> None:
    fill(page, HOSTILE, [HOSTILE] * (answers - 1) + ["other"])
    compare(page)
    expect(page.locator("#curl")).to_contain_text("<script>window.pwned=1</script>")
    if answers == 3:
        expect(page.locator("#ranks")).to_contain_text("<img src=x")
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script").count() == 0


def test_a_changed_text_marks_the_result_as_old(page: Page) -> None:
    fill(page, PROMPT, PAIR)
    compare(page)
    expect(page.locator("#stale")).to_be_hidden()
    page.get_by_role("textbox", name="Answer A").fill("Something else.")
    expect(page.locator("#stale")).to_be_visible()
    compare(page)
    expect(page.locator("#stale")).to_be_hidden()


def test_an_error_of_the_service_is_told_and_a_key_mends_it(browser: Browser, tmp_path: Path) -> None:
    """The console is not looked at here: Chromium itself writes every 401 there."""
    key = ApiKey(name="me", sha256=hash_token(b"sesame"), scopes=frozenset(("score",)), created=datetime.now(UTC))
    keys = tmp_path / "keys.json"
    keys.write_text(ApiKeys(keys=(key,)).model_dump_json())
    with started(STARTER, api_keys_file=keys) as guarded:
        page = browser.new_page()
        page.goto(str(guarded.client.base_url))
        expect(page.locator("#serving")).to_have_text("This service asks for an API key.")
        fill(page, PROMPT, PAIR)
        compare(page)
        expect(page.get_by_role("alert")).to_have_text("unauthorized send a key: Authorization: Bearer <key>")
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("sesame")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("heading", level=2)).to_contain_text("is better")
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator("#curl")).to_contain_text("$TINYRM_API_KEY")
        expect(page.locator("#curl")).not_to_contain_text("sesame")
        stored = "[localStorage.length, sessionStorage.length, document.cookie, location.search]"
        assert page.evaluate(stored) == [0, 0, "", ""]
        page.close()


def test_a_service_that_is_gone_is_told(browser: Browser) -> None:
    with started(STARTER) as leaving:
        page = browser.new_page()
        page.goto(str(leaving.client.base_url))
        fill(page, PROMPT, PAIR)
        leaving.stop()
    compare(page)
    expect(page.get_by_role("alert")).to_contain_text("no_answer The service gave no answer")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nobody_is_shut_out(browser: Browser, service: Process, viewport: object, scheme: str) -> None:
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
    """Serious and critical findings of axe-core."""
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


def width_overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_it_stands_still_for_those_who_ask(browser: Browser, service: Process) -> None:
    script = "getComputedStyle(document.querySelector('#compare')).transitionDuration"
    with opened(browser, service, reduced_motion="reduce") as page:
        assert page.evaluate(script) == "0s"
    with opened(browser, service, reduced_motion="no-preference") as page:
        assert page.evaluate(script) != "0s"
