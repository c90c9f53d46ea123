"""Test the page in a real Chromium with the starter model: by mouse, by keyboard, for screen readers."""

import base64
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
from tests.e2e.browser import DESKTOP, PHONE, Example, compare, fill, watched
from tests.support.processes import STARTER, Process, started

pytestmark = pytest.mark.slow

PROMPT, THREE = Example.prompt, list(Example.responses)
PAIR = THREE[:2]
LONG = "and then some more " * 2000
EXAMPLES = ("Maths", "Code", "Safety", "Helpfulness", "Length trap", "Tie", "Five to rank")
ANY_VERDICT = re.compile(r"^(Too close to call \(\d+ : \d+\)|Leans [AB]|Clearly [AB])$")
HOSTILE = """<img src=x onerror="window.pwned=1"><script>window.pwned=1</script> it's `id` $HOME \\ "ü" 😀\n&lt;b&gt;"""


@pytest.fixture(scope="module")
def service() -> Iterator[Process]:
    with started(STARTER) as one:
        yield one


@contextmanager
def opened(browser: Browser, service: Process, path: str = "/", **options: Any) -> Iterator[Page]:
    with watched(browser, service, **options) as page:
        page.goto(path)
        page.wait_for_load_state("networkidle")
        yield page


@pytest.fixture
def page(browser: Browser, service: Process) -> Iterator[Page]:
    with opened(browser, service) as one:
        yield one


@pytest.fixture
def lone_page(browser: Browser, service: Process) -> Iterator[Page]:
    """Return a page, not opened yet, whose console nobody reads: Chromium itself writes every error of a call there."""
    context = browser.new_context(viewport=DESKTOP, base_url=str(service.client.base_url))
    yield context.new_page()
    context.close()


def verdict(reply: dict[str, Any]) -> str:
    """Return the heading of a reply to a comparison."""
    better, share = reply["preferred"].upper(), round(100 * reply["probability_a"])
    return {
        "close": f"Too close to call ({share} : {100 - share})",
        "leaning": f"Leans {better}",
        "clear": f"Clearly {better}",
    }[reply["confidence"]]


def heading(page: Page) -> Any:
    return page.locator("#verdicts h3").first


def rewritten(page: Page, path: str, **fields: Any) -> None:
    """Replace fields of the service's replies."""

    def handle(route: Route) -> None:
        reply = route.fetch()
        route.fulfill(response=reply, json=reply.json() | fields)

    page.route(f"**/{path}", handle)


# The beginning


def test_the_page_begins_with_a_compared_example(page: Page) -> None:
    expect(page.locator("#prompt")).to_have_value(re.compile("^Natalia"))
    expect(heading(page)).to_have_text("Clearly A")
    expect(page.get_by_role("button", name="Maths")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("[localStorage.length, location.hash]") == [0, ""], "nobody asked for this comparison"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_starter_finds_what_is_expected_of_an_example(page: Page, name: str) -> None:
    page.get_by_role("button", name=name).click()
    expect(page.locator("#expected")).to_contain_text("The model agrees.")
    expect(page.get_by_role("button", name=name)).to_have_attribute("aria-pressed", "true")
    page.locator("#prompt").press("x")
    expect(page.locator("#expected")).to_be_empty()


def test_a_model_that_does_not_find_what_is_expected_is_shown_as_it_is(page: Page) -> None:
    rewritten(page, "v1/compare", preferred="b", confidence="clear", probability_a=0.1, probability_b=0.9)
    page.get_by_role("button", name="Helpfulness").click()
    expect(page.locator("#expected")).to_contain_text("The model agrees.")
    page.get_by_role("button", name="Safety").click()
    expect(heading(page)).to_have_text("Clearly B")
    expect(page.locator("#expected")).to_contain_text("Expected: A, because")
    expect(page.locator("#expected")).to_contain_text("The model does not agree.")


def test_the_header_names_the_model_and_a_click_shows_its_card(browser: Browser, service: Process) -> None:
    card = service.get("/v1/models").json()["models"][0]
    identity = f"{card['name']}@{card['revision']}"
    with opened(browser, service) as page:
        page.get_by_role("button", name=identity).click()
        dialog = page.get_by_role("dialog", name=card["name"])
        expect(dialog).to_contain_text(f"{card['max_tokens']} tokens")
        expect(dialog).to_contain_text("22.7 million")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(page.locator("footer")).to_contain_text(re.compile(r"TinyRM \d+\.\d+"))


@pytest.mark.parametrize("is_demo", [True, False])
def test_the_accuracy_is_that_of_the_card_and_a_demo_model_is_called_one(lone_page: Page, is_demo: bool) -> None:
    def handle(route: Route) -> None:
        reply = route.fetch()
        listed = reply.json()
        accuracy = {"value": 0.6471, "low": 0.62, "high": 0.67, "pairs": 2216}
        listed["models"][0] |= {"demo": is_demo, "accuracy": accuracy}
        route.fulfill(response=reply, json=listed)

    lone_page.route("**/v1/models", handle)
    lone_page.goto("/")
    expect(lone_page.locator("#serving .badge")).to_have_text(
        "demo model, 64.7 % accurate" if is_demo else "64.7 % accurate"
    )


# Verdicts


def test_two_responses_get_the_verdict_of_the_api(page: Page, service: Process) -> None:
    fill(page, PROMPT, PAIR)
    page.get_by_label("Domain").select_option(Example.domain)
    compare(page)
    body = {"prompt": PROMPT, "response_a": PAIR[0], "response_b": PAIR[1], "domain": Example.domain}
    reply = service.post("/v1/compare", body).json()
    expect(heading(page)).to_have_text(verdict(reply))
    shares = [f"{reply[f'probability_{side}']:.1%}".replace("%", " %") for side in "ab"]
    expect(page.locator(".why")).to_contain_text(f"{reply['preferred'].upper()} is better with a probability of")
    expect(page.locator(".share-a")).to_have_text(f"A {shares[0]}")
    expect(page.locator(".share-b")).to_have_text(f"B {shares[1]}")
    assert page.locator(".pair > .bar").evaluate("bar => bar.style.getPropertyValue('--share')") == shares[0].replace(
        " ", ""
    )
    expect(page.locator(".card").nth(0).locator(".badges")).to_have_text(f"★ better{shares[0]}")
    expect(page.locator(".card").nth(1).locator(".badges")).to_have_text(shares[1])
    expect(page.locator("#status")).to_contain_text(f"{verdict(reply)}. The reply took")
    for fact in (reply["model"], f"{reply['usage']['gflops']:.2f} GFLOPs"):
        expect(page.locator("#facts")).to_contain_text(fact)


@pytest.mark.parametrize(
    ("confidence", "preferred", "words", "winner"),
    [
        ("close", "a", "Too close to call (51 : 49)", None),
        ("leaning", "b", "Leans B", "B"),
        ("clear", "a", "Clearly A", "A"),
    ],
)
def test_the_heading_says_how_sure_the_verdict_is_and_only_a_winner_is_marked(
    page: Page, confidence: str, preferred: str, words: str, winner: str | None
) -> None:
    probabilities = {"probability_a": 0.512, "probability_b": 0.488}
    rewritten(page, "v1/compare", confidence=confidence, preferred=preferred, **probabilities)
    fill(page, PROMPT, PAIR)
    compare(page)
    expect(heading(page)).to_have_text(words)
    expect(page.locator("#status")).to_contain_text(f"{words}. The reply took")
    marked = page.locator(".card.winner label").all_inner_texts()
    assert marked == ([f"Response {winner}"] if winner else [])


def test_a_model_that_reads_one_response_has_no_orders(browser: Browser, response_bundle_folder: Path) -> None:
    with started(response_bundle_folder) as one, opened(browser, one) as page:
        fill(page, PROMPT, PAIR)
        compare(page)
        expect(page.locator(".why")).to_contain_text("from the score of each response by itself")
        expect(page.locator(".orders li")).to_have_count(0)
        fill(page, PROMPT, THREE)
        compare(page)
        expect(page.locator(".why")).to_contain_text("Each of 3 responses was scored by itself.")
        expect(page.locator("#facts")).not_to_contain_text("Comparisons")


def test_a_model_that_reads_sets_has_no_orders(browser: Browser, set_bundle_folder: Path) -> None:
    with started(set_bundle_folder) as one, opened(browser, one) as page:
        fill(page, PROMPT, PAIR)
        compare(page)
        expect(page.locator(".why")).to_contain_text("from both responses beside each other")
        expect(page.locator(".orders li")).to_have_count(0)
        fill(page, PROMPT, THREE)
        compare(page)
        expect(page.locator(".why")).to_contain_text("All 3 responses were read beside each other.")


def test_each_order_is_shown_and_one_call_is_enough(browser: Browser, bundle_folder: Path) -> None:
    with started(bundle_folder) as of_pairs, opened(browser, of_pairs) as page:
        calls: list[str] = []
        page.on("request", lambda request: calls.append(request.url) if "compare" in request.url else None)
        fill(page, PROMPT, PAIR)
        compare(page)
        alone = {"prompt": PROMPT, "swap": "off", "domain": "general"}
        forward = of_pairs.post("/v1/compare", alone | {"response_a": PAIR[0], "response_b": PAIR[1]}).json()
        backward = of_pairs.post("/v1/compare", alone | {"response_a": PAIR[1], "response_b": PAIR[0]}).json()
        rows = page.locator(".orders li")
        expect(rows).to_have_count(2)
        expect(rows.nth(0)).to_contain_text(f"A {100 * forward['probability_a']:.1f} %")
        expect(rows.nth(1)).to_contain_text(f"A {100 * backward['probability_b']:.1f} %")
        assert [url.rpartition("/v1/")[2] for url in calls] == ["compare"]
        rewritten(page, "v1/compare", orders={"a_first": 0.7, "b_first": 0.4}, confidence="close")
        compare(page)
        expect(page.locator(".why")).to_contain_text("The two orders disagree")


def test_three_responses_are_ranked_and_the_cards_sorted(page: Page, service: Process) -> None:
    fill(page, PROMPT, THREE)
    compare(page)
    domain = page.get_by_label("Domain").input_value()
    body = {"prompt": PROMPT, "responses": THREE, "swap": "on", "domain": domain}
    reply = service.post("/v1/rank", body).json()
    rows = page.locator(".ranks li")
    expect(rows).to_have_count(3)
    best = "ABC"[reply["order"][0]]
    expect(heading(page)).to_have_text(re.compile(f"(Leans|Clearly|Too close to call:) {best}"))
    for place, index in enumerate(reply["order"]):
        name = f"Response {'ABC'[index]}"
        expect(rows.nth(place).locator(".name")).to_have_text(name)
        expect(rows.nth(place).locator(".figure")).to_contain_text(f"{abs(reply['strengths'][index]):.2f} ±")
        card = page.locator(".card").nth(place)
        expect(card.locator("label")).to_have_text(name)
        expect(card.locator("textarea")).to_have_value(THREE[index])
        expect(card.locator(".badges")).to_contain_text(f"{place + 1} of 3")
    places = [float(row.evaluate("row => parseFloat(row.style.getPropertyValue('--at'))")) for row in rows.all()]
    assert places == sorted(places, reverse=True), "the best is the furthest to the right"
    compare(page)
    expect(rows).to_have_count(3)
    assert page.locator(".ranks .name").all_inner_texts()[0] == f"Response {best}", "letters stay with their texts"


@pytest.mark.parametrize(
    ("strengths", "errors", "words"),
    [
        ([2.0, -1.0, -1.0], [0.5, 0.5, 0.5], "Clearly A"),
        ([2.0, -1.0, -1.0], [3.0, 3.0, 3.0], "Leans A"),
        ([0.1, 0.0, -0.1], [0.01, 0.01, 0.01], "Too close to call: A or B"),
    ],
)
def test_a_ranking_is_only_clear_if_the_lead_is_more_than_its_standard_error(
    page: Page, strengths: list[float], errors: list[float], words: str
) -> None:
    rewritten(page, "v1/rank", order=[0, 1, 2], strengths=strengths, standard_errors=errors)
    fill(page, PROMPT, THREE)
    compare(page)
    expect(heading(page)).to_have_text(words)


def test_two_models_judge_one_input_side_by_side(browser: Browser, bundle_folder: Path) -> None:
    with started(STARTER, more_models=bundle_folder) as both, opened(browser, both) as page:
        page.get_by_label("Model", exact=True).select_option("starter")
        page.get_by_label("Second model").select_option("toy")
        fill(page, PROMPT, PAIR)
        compare(page)
        columns = page.locator(".verdict")
        expect(columns).to_have_count(2)
        body = {"prompt": PROMPT, "response_a": PAIR[0], "response_b": PAIR[1], "domain": "general"}
        page.get_by_label("Domain").select_option("general")
        compare(page)
        for name, column in zip(("starter", "toy"), columns.all(), strict=True):
            reply = both.post("/v1/compare", body | {"model": name}).json()
            expect(column.locator(".by")).to_have_text(reply["model"])
            expect(column.locator("h3")).to_have_text(verdict(reply))
        expect(page.locator("#facts dl")).to_have_count(2)
        assert barriers(page) == []


def test_a_changed_text_marks_the_result_as_outdated(page: Page) -> None:
    fill(page, PROMPT, PAIR)
    compare(page)
    expect(page.locator("#stale")).to_be_hidden()
    page.locator("#response-A").fill("Something else.")
    expect(page.locator("#stale")).to_be_visible()
    compare(page)
    expect(page.locator("#stale")).to_be_hidden()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_verdict_and_responses_are_on_one_screen(browser: Browser, service: Process, viewport: Any) -> None:
    with opened(browser, service, viewport=viewport) as page:
        fill(page, PROMPT, PAIR)
        compare(page)
        expect(heading(page)).to_be_in_viewport(ratio=1)
        for letter in "AB":
            expect(page.locator(f"#name-{letter}")).to_be_in_viewport(ratio=1)


# Texts


def test_tokens_are_counted_while_typing(page: Page, service: Process) -> None:
    fill(page, PROMPT, PAIR)
    body = {"prompt": PROMPT, "responses": PAIR, "domain": page.get_by_label("Domain").input_value()}
    counts = service.post("/v1/tokens", body).json()
    expect(page.locator("#prompt-tokens")).to_have_text(f"{counts['prompt']} tokens")
    for card, tokens in zip(page.locator(".card").all(), counts["responses"], strict=True):
        expect(card.locator(".tokens")).to_have_text(f"{tokens} tokens")
    expect(page.locator("#length")).to_have_text(f"{counts['longest_sequence']} / {counts['max_tokens']} tokens")


def test_a_text_that_is_too_long_is_named_before_and_after_the_comparison(page: Page, service: Process) -> None:
    fill(page, PROMPT, [PAIR[0], LONG])
    warning = page.locator("#truncated")
    expect(warning).to_have_text(re.compile(r"^The model will not see [\d,]+ tokens of response B"))
    compare(page)
    domain = page.get_by_label("Domain").input_value()
    body = {"prompt": PROMPT, "response_a": PAIR[0], "response_b": LONG, "domain": domain}
    truncated = service.post("/v1/compare", body).json()["truncated"]
    assert truncated["response_b"] > 1000
    expect(warning).to_contain_text(f"The model did not see {truncated['response_b']:,} tokens of response B")
    fill(page, PROMPT, PAIR)
    expect(warning).to_be_hidden()


def test_a_service_that_does_not_count_tokens_is_asked_once(lone_page: Page) -> None:
    asked: list[str] = []
    error = {"error": {"type": "not_found", "message": "no such path"}}

    def missing(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=404, json=error)

    lone_page.clock.install()
    lone_page.route("**/v1/tokens", missing)
    # Waited for from the start: the clock goes on by itself too, and on a slow machine past the time of this request.
    with lone_page.expect_response("**/v1/tokens"):
        lone_page.goto("/")
        expect(heading(lone_page)).to_have_text("Clearly A")
        lone_page.clock.run_for(1000)
    fill(lone_page, PROMPT, [PAIR[0], LONG])
    lone_page.clock.run_for(1000)
    compare(lone_page)
    expect(lone_page.locator("#truncated")).to_contain_text("The model did not see")
    expect(lone_page.get_by_role("alert")).to_have_count(0)
    assert len(asked) == 1


def test_turns_are_sent_as_messages_and_one_turn_of_the_user_as_a_text(page: Page) -> None:
    fill(page, PROMPT, PAIR)
    page.get_by_role("button", name="Add a system prompt").click()
    page.keyboard.type("Be kind.")
    page.get_by_role("button", name="Add a turn").click()
    page.keyboard.type("Which exam?")
    page.get_by_role("button", name="Add a turn").click()
    page.keyboard.type("42")
    page.get_by_label("Role of turn 4").select_option("tool")
    with page.expect_request("**/v1/compare") as sent:
        compare(page)
    assert sent.value.post_data_json["prompt"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "Which exam?"},
        {"role": "tool", "content": "42"},
    ]
    expect(heading(page)).to_have_text(ANY_VERDICT)
    for turn in (4, 3, 1):
        page.get_by_role("button", name=f"Remove turn {turn}").click()
    with page.expect_request("**/v1/compare") as sent:
        compare(page)
    assert sent.value.post_data_json["prompt"] == PROMPT


USER, REPLY, OTHER = (
    {"role": role, "content": text} for role, text in (("user", "u"), ("assistant", "x"), ("assistant", "y"))
)
PARTS = {"role": "user", "content": [{"type": "text", "text": "u"}]}
PASTED: dict[str, tuple[Any, Any, list[str]]] = {
    "a comparison": ({"prompt": "p", "response_a": "x", "response_b": "y", "domain": "safety"}, "p", ["x", "y"]),
    "a ranking": ({"prompt": "p", "responses": ["x", "y", "z"]}, "p", ["x", "y", "z"]),
    "messages": ([{"role": "system", "content": "s"}, PARTS], [{"role": "system", "content": "s"}, USER], ["", ""]),
    "an answered dialogue": ({"messages": [USER, REPLY]}, [USER], ["x", ""]),
    "a preference": ({"prompt": "p", "chosen": "x", "rejected": "y"}, "p", ["x", "y"]),
    "a preference of messages": ({"chosen": [USER, REPLY], "rejected": [USER, OTHER]}, [USER], ["x", "y"]),
    "a preference with both": ({"prompt": "u", "chosen": [REPLY], "rejected": [OTHER]}, "u", ["x", "y"]),
}


@pytest.mark.parametrize("kind", PASTED)
def test_pasted_json_fills_the_form(page: Page, kind: str) -> None:
    pasted, prompt, responses = PASTED[kind]
    paste(page, json.dumps(pasted) + "\n" + json.dumps(pasted))
    expect(page.locator("#status")).to_contain_text("Filled in from")
    state = page.evaluate("import('./page/form.js').then((form) => form.readState())")
    is_text = prompt == [USER]
    assert (state["prompt"], state["responses"]) == ("u" if is_text else prompt, responses)
    if "domain" in pasted:
        assert state["domain"] == pasted["domain"]


@pytest.mark.parametrize("text", ["{not JSON}", "[1, 2]", '{"a": 1}', '{"prompt": 1, "chosen": 2, "rejected": 3}', "x"])
def test_any_other_pasted_text_is_a_text(page: Page, text: str) -> None:
    page.locator("#prompt").fill("")
    assert paste(page, text), "the browser itself inserts it"


def paste(page: Page, text: str) -> bool:
    """Paste into the prompt, and return whether the browser would insert the text itself."""
    return bool(
        page.locator("#prompt").evaluate(
            """(box, text) => {
              const clipboardData = new DataTransfer();
              clipboardData.setData("text/plain", text);
              return box.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
            }""",
            text,
        )
    )


def test_a_response_can_be_removed_and_names_close_up(page: Page) -> None:
    fill(page, PROMPT, THREE)
    page.get_by_role("button", name="Remove response B").click()
    boxes = page.get_by_role("textbox", name="Response ")
    assert [box.input_value() for box in boxes.all()] == [THREE[0], THREE[2]]
    expect(page.get_by_role("textbox", name="Response B")).to_be_focused()
    expect(page.get_by_role("button", name="Remove response")).to_have_count(0)


def test_an_empty_box_gets_the_focus_and_nothing_is_sent(page: Page) -> None:
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#prompt")).to_be_focused()
    fill(page, PROMPT, [PAIR[0], ""])
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#response-B")).to_be_focused()
    expect(page.get_by_text("Write it first.")).to_be_visible()
    expect(page.locator("#result")).to_be_hidden()


def test_responses_are_shown_as_markdown_or_with_their_differences(page: Page) -> None:
    fill(page, PROMPT, ["Try **again** `now`.", "Try **never** `now`."])
    page.get_by_role("button", name="Rendered").click()
    expect(page.locator("#responses strong")).to_have_text(["again", "never"])
    expect(page.locator("#responses textarea").first).to_be_hidden()
    page.get_by_role("button", name="Differences").click()
    expect(page.locator("#responses :is(del, ins)").first).to_contain_text("again")
    page.get_by_role("button", name="Add a response").click()
    expect(page.get_by_role("button", name="Write")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Differences")).to_be_disabled()


def test_an_empty_response_can_be_written_in_whatever_view_the_last_one_was(page: Page) -> None:
    compare(page)
    page.get_by_role("button", name="Rendered").click()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#status")).to_be_empty()
    expect(page.get_by_role("button", name="Rendered")).to_be_disabled()
    fill(page, PROMPT, PAIR)
    page.get_by_role("button", name="Rendered").click()
    page.get_by_role("button", name="Add a response").click()
    page.keyboard.type("Try again.")
    expect(page.locator("#response-C")).to_have_value("Try again.")


def test_the_domain_of_a_file_is_chosen_beside_it(page: Page) -> None:
    page.get_by_role("link", name="Score a file").click()
    expect(page.get_by_label("Domain")).to_have_value("general")
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_label("Domain")).to_have_value("reasoning")
    expect(page.locator("#stale")).to_be_hidden()
    page.get_by_role("link", name="Score a file").click()
    page.get_by_label("Domain").select_option("safety")
    page.get_by_role("button", name="Use example pairs").click()
    expect(page.locator("#file .results")).to_contain_text("in the domain safety where a line has none of its own")
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_label("Domain")).to_have_value("safety")
    expect(page.locator("#stale")).to_be_visible()


def test_a_turn_states_what_belongs_into_it(page: Page) -> None:
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_placeholder("A question or a task")).to_have_count(1)
    page.get_by_role("button", name="Add a turn").click()
    expect(page.get_by_placeholder("What the assistant replied")).to_be_focused()
    page.get_by_label("Role of turn 2").select_option("tool")
    expect(page.get_by_placeholder("What the tool returned")).to_have_count(1)


@pytest.mark.parametrize("responses", [2, 3])
def test_markup_stays_text(page: Page, responses: int) -> None:
    fill(page, HOSTILE, [HOSTILE] * (responses - 1) + ["other"])
    compare(page)
    expect(page.locator("#snippet")).to_contain_text("<script>window.pwned=1</script>")
    for view in ("Rendered", "Differences")[: 4 - responses]:
        page.get_by_role("button", name=view).click()
        expect(page.locator("#responses")).to_contain_text("<img src=x")
    expect(page.locator("#history")).to_be_visible()
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script").count() == 0


# Code, links, history


@pytest.mark.parametrize("responses", [PAIR, THREE], ids=["compare", "rank"])
def test_the_curl_command_works(page: Page, responses: list[str]) -> None:
    fill(page, HOSTILE, [HOSTILE, *responses[1:]])
    compare(page)
    command = page.locator("#snippet").text_content()
    assert command
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30)
    reply = json.loads(done.stdout)
    if "order" in reply:
        expect(heading(page)).to_contain_text("ABC"[reply["order"][0]])
    else:
        expect(heading(page)).to_have_text(verdict(reply))


def test_each_language_has_a_tab_and_copy_takes_what_is_shown(browser: Browser, service: Process) -> None:
    with opened(browser, service, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_role("tab", name="curl").press("ArrowRight")
        expect(page.get_by_role("tab", name="Python", exact=True)).to_be_focused()
        expect(page.locator("#snippet")).to_contain_text("import")
        page.get_by_role("button", name="Copy", exact=True).click()
        expect(page.locator("#status")).to_have_text("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == page.locator("#snippet").text_content()


def test_a_reload_and_a_link_show_the_same_comparison(browser: Browser, service: Process) -> None:
    with opened(browser, service, permissions=["clipboard-read", "clipboard-write"]) as page:
        fill(page, HOSTILE, THREE)
        page.get_by_label("Domain").select_option("safety")
        compare(page)
        expected = heading(page).inner_text()
        page.get_by_role("button", name="Copy link").click()
        expect(page.locator("#status")).to_contain_text("Link copied")
        link = page.evaluate("navigator.clipboard.readText()")
        page.reload()
        expect(heading(page)).to_have_text(expected)
    with opened(browser, service, link) as other:
        expect(heading(other)).to_have_text(expected)
        state = other.evaluate("import('./page/form.js').then((form) => form.readState())")
        assert (state["prompt"], state["responses"], state["domain"]) == (HOSTILE, THREE, "safety")


def test_a_link_to_another_model_or_domain_is_not_compared_with_what_is_here(page: Page) -> None:
    calls: list[str] = []
    page.on("request", lambda request: calls.append(request.url))
    state = {"prompt": PROMPT, "responses": PAIR, "domain": "cooking", "models": ["other"]}
    fragment = base64.urlsafe_b64encode(json.dumps(state).encode()).decode().rstrip("=")
    page.evaluate("(hash) => { location.hash = hash; }", f"j.{fragment}")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("does not have the model other, nor the domain cooking")
    expect(page.locator("#response-B")).to_have_value(PAIR[1])
    assert not [url for url in calls if url.endswith("/v1/compare")]
    compare(page)
    expect(heading(page)).to_have_text(ANY_VERDICT)
    expect(alert).to_have_count(0)


def test_texts_that_no_link_can_hold_get_no_link(page: Page) -> None:
    noise = "Array.from({ length: 30 }, () => crypto.getRandomValues(new Uint8Array(60_000)).join(' ')).join(' ')"
    page.evaluate(f"document.getElementById('response-A').value = {noise}")
    compare(page)
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#status")).to_contain_text("too long for a link")


def test_earlier_comparisons_can_be_opened_and_forgotten(page: Page) -> None:
    for prompt in (PROMPT, "Another?"):
        fill(page, prompt, PAIR)
        compare(page)
    page.locator("#history summary").click()
    prompts = page.locator("#entries .text")
    expect(prompts).to_have_text(["Another?", PROMPT])
    page.get_by_role("button", name=PROMPT).first.click()
    expect(page.locator("#prompt")).to_have_value(PROMPT)
    page.locator("body:not([aria-busy])").wait_for()
    expect(prompts).to_have_text(["Another?", PROMPT])
    page.get_by_role("button", name="Remove from the history: Another?").click()
    expect(prompts).to_have_text([PROMPT])
    page.locator("#clear-history").click()
    expect(page.locator("#history")).to_be_hidden()
    assert page.evaluate("localStorage.length") == 0


def test_a_result_is_exported_as_json(page: Page, service: Process) -> None:
    fill(page, PROMPT, PAIR)
    compare(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export JSON").click()
    content = json.loads(Path(saved.value.path()).read_text())
    assert content["state"]["responses"] == PAIR
    assert content["result"][0]["model"].startswith("starter@")


def test_a_file_of_pairs_is_scored_on_its_own_page_and_a_line_opens_in_the_form(page: Page) -> None:
    page.get_by_role("link", name="Score a file").click()
    expect(page.locator("#form")).to_be_hidden()
    line = {"prompt": PROMPT, "chosen": PAIR[0], "rejected": PAIR[1]}
    file = {"name": "pairs.jsonl", "mimeType": "application/jsonl", "buffer": json.dumps(line).encode()}
    page.locator("#file input[type=file]").set_input_files(file)
    expect(page.locator("#file")).to_contain_text("100.0 % accuracy")
    assert barriers(page) == []
    page.get_by_role("button", name=PROMPT).click()
    expect(page.locator("#prompt")).to_have_value(PROMPT)
    expect(page.locator("#response-A")).to_have_value(PAIR[0])
    expect(page.get_by_role("link", name="Compare")).to_have_attribute("aria-current", "page")


# Errors


def test_the_key_is_asked_for_only_if_the_service_needs_one(browser: Browser, tmp_path: Path, page: Page) -> None:
    """Do not check the console: Chromium itself writes every 401 there."""
    expect(page.locator("#key-field")).to_be_hidden()
    key = ApiKey(name="me", sha256=hash_token(b"sesame"), scopes=frozenset(("score",)), created=datetime.now(UTC))
    keys = tmp_path / "keys.json"
    keys.write_text(ApiKeys(keys=(key,)).model_dump_json())
    with started(STARTER, api_keys_file=keys) as guarded:
        other = browser.new_page()
        other.goto(str(guarded.client.base_url))
        alert = other.get_by_role("alert")
        expect(alert).to_contain_text("The service needs an API key")
        expect(alert.locator("code")).to_have_text("unauthorized")
        expect(other.get_by_label("API key")).to_be_focused()
        other.get_by_label("API key").fill("“sesame”")
        other.keyboard.press("Enter")
        expect(alert).to_contain_text("copy it again")
        other.get_by_label("API key").fill("sesame")
        other.keyboard.press("Enter")
        expect(heading(other)).to_have_text("Clearly A")
        expect(alert).to_have_count(0)
        fill(other, PROMPT, PAIR)
        compare(other)
        expect(other.locator("#snippet")).to_contain_text("$TINYRM_API_KEY")
        everywhere = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        assert "sesame" not in other.evaluate(everywhere) + other.locator("body").inner_text()
        other.close()
        other = browser.new_page()
        other.goto(f"{guarded.client.base_url}#file")
        expect(other.get_by_label("API key")).to_be_focused()
        other.keyboard.type("sesame")
        other.keyboard.press("Enter")
        expect(other.get_by_role("alert")).to_have_count(0)
        other.get_by_role("button", name="Use example pairs").click()
        expect(other.locator("#file .results")).to_contain_text("of 12 labelled pairs.")
        other.close()


def test_a_comparison_that_failed_can_be_tried_again(lone_page: Page) -> None:
    lone_page.goto("/")
    expect(heading(lone_page)).to_have_text("Clearly A")
    lone_page.route("**/v1/compare", lambda route: route.abort())
    fill(lone_page, PROMPT, PAIR)
    compare(lone_page)
    alert = lone_page.get_by_role("alert")
    expect(alert.locator("strong")).to_have_text("No reply")
    expect(alert.locator("code")).to_have_text("no_reply")
    expect(lone_page.locator("#stale")).to_be_visible()
    lone_page.unroute("**/v1/compare")
    lone_page.get_by_role("button", name="Retry").click()
    expect(heading(lone_page)).to_have_text(ANY_VERDICT)
    expect(alert).to_have_count(0)


def test_the_error_of_one_of_two_models_names_it_and_leaves_the_result_of_the_other(
    browser: Browser, bundle_folder: Path
) -> None:
    with started(STARTER, more_models=bundle_folder) as both:
        page = browser.new_page(base_url=str(both.client.base_url))
        page.goto("/")
        page.get_by_label("Model", exact=True).select_option("starter")
        page.get_by_label("Second model").select_option("toy")
        error = {"error": {"type": "engine_restarting", "message": "the engine restarts"}}

        def refuse_one(route: Route) -> None:
            if route.request.post_data_json["model"] == "toy":
                route.fulfill(status=503, json=error)
            else:
                route.continue_()

        page.route("**/v1/compare", refuse_one)
        compare(page)
        expect(page.get_by_role("alert").locator("p")).to_have_text("toy: the engine restarts")
        expect(page.locator(".verdict .by")).to_contain_text("starter")
        expect(page.locator("#stale")).to_be_hidden()
        page.context.close()


def test_a_busy_service_says_when_to_try_again(lone_page: Page) -> None:
    lone_page.clock.install(time=0)
    lone_page.clock.pause_at(1)
    error = {"error": {"type": "overloaded", "message": "too much work is waiting"}}
    headers = {"Retry-After": "7"}
    lone_page.route("**/v1/compare", lambda route: route.fulfill(status=429, headers=headers, json=error))
    lone_page.goto("/")
    retry = lone_page.get_by_role("button", name="Retry")
    expect(lone_page.get_by_role("alert").locator("strong")).to_have_text("The service is busy")
    expect(retry).to_have_text("Retry in 7 s")
    expect(retry).to_be_disabled()
    lone_page.clock.run_for(8000)
    expect(retry).to_have_text("Retry")
    expect(retry).to_be_enabled()


def test_bad_input_cannot_be_tried_again(lone_page: Page) -> None:
    error = {"error": {"type": "invalid_request", "message": "prompt: too strange"}}
    lone_page.route("**/v1/compare", lambda route: route.fulfill(status=422, json=error))
    lone_page.goto("/")
    alert = lone_page.get_by_role("alert")
    expect(alert).to_contain_text("The service refused the input")
    expect(alert).to_contain_text("prompt: too strange")
    expect(lone_page.get_by_role("button", name="Retry")).to_have_count(0)


def test_a_service_that_is_down_when_the_page_opens_can_be_tried_again(lone_page: Page) -> None:
    lone_page.route("**/v1/models", lambda route: route.abort())
    lone_page.goto("/")
    expect(lone_page.get_by_role("alert")).to_contain_text("No reply")
    expect(lone_page.locator("#serving")).to_be_empty()
    lone_page.unroute("**/v1/models")
    lone_page.get_by_role("button", name="Retry").click()
    expect(lone_page.locator("#serving")).to_contain_text("starter@")
    expect(heading(lone_page)).to_have_text("Clearly A")


# Keyboard, screen readers, looks


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    page.get_by_role("button", name="Clear").click()
    page.keyboard.type(PROMPT)
    for text in PAIR:
        page.keyboard.press("Tab")
        while page.evaluate("document.activeElement.tagName") != "TEXTAREA":
            page.keyboard.press("Tab")
        page.keyboard.type(text)
    page.keyboard.press("Control+Enter")
    expect(heading(page)).to_have_text(ANY_VERDICT)
    page.keyboard.press("Alt+r")
    expect(page.locator("#result")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+n")
    expect(page.locator("#response-C")).to_be_focused()
    page.keyboard.type("what?")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#response-C")).to_have_value("what?")
    page.keyboard.press("Alt+v")
    expect(page.get_by_role("button", name="Rendered")).to_have_attribute("aria-pressed", "true")


def test_escape_stops_a_comparison(page: Page) -> None:
    page.route("**/v1/compare", lambda route: None)
    fill(page, PROMPT, PAIR)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("body")).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    expect(page.locator("body:not([aria-busy])")).to_have_count(1)
    expect(page.locator("#status")).to_have_text("Stopped.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_barrier_and_nothing_overflows(
    browser: Browser, service: Process, viewport: object, scheme: str
) -> None:
    with opened(browser, service, viewport=viewport, color_scheme=scheme, reduced_motion="reduce") as page:

        def check() -> None:
            assert barriers(page) == []
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0

        check()
        page.get_by_role("button", name="Code", exact=True).click()
        expect(page.locator("#expected")).to_contain_text("The model")
        for view in ("Rendered", "Differences", "Write"):
            page.get_by_role("button", name=view).click()
            check()
        page.get_by_role("button", name="Tie").click()
        expect(heading(page)).to_contain_text("Too close to call")
        page.locator("#history summary").click()
        check()
        page.get_by_role("button", name="Five to rank").click()
        expect(page.locator(".ranks li")).to_have_count(5)
        check()
        page.get_by_role("button", name="Add a system prompt").click()
        page.get_by_role("button", name="Add a turn").click()
        page.locator("#response-B").fill(LONG)
        expect(page.locator("#truncated")).to_be_visible()
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("#status")).to_have_text("The prompt is empty.")
        check()
        page.get_by_role("button", name="starter@").click()
        check()
        page.keyboard.press("Escape")
        page.evaluate("document.getElementById('shortcuts').showModal()")
        check()


def barriers(page: Page) -> list[str]:
    """Return the findings of axe-core."""
    found = Axe().run(page).response["violations"]
    return [f"{violation['id']}: {violation['nodes'][0]['html']}" for violation in found]


def test_reduced_motion_is_respected(browser: Browser, service: Process) -> None:
    script = "getComputedStyle(document.querySelector('#compare')).transitionDuration"
    with opened(browser, service, reduced_motion="reduce") as page:
        assert page.evaluate(script) == "0s"
    with opened(browser, service, reduced_motion="no-preference") as page:
        assert page.evaluate(script) != "0s"
