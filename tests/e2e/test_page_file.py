"""Test the panel for files of pairs in a real Chromium with a real service, against `tinyrm score` on the same file."""

import codecs
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from service.api.pages import PAGE_POLICY
from tests.e2e.browser import DESKTOP, PHONE, watched
from tests.support.kept import REPOSITORY
from tests.support.processes import STARTER, Process, started

pytestmark = pytest.mark.slow

PANEL = (
    '<!doctype html><html lang="en"><head><meta name="viewport" content="width=device-width"><title>panel</title>'
    '<link rel="stylesheet" href="page/style.css"><link rel="stylesheet" href="page/file.css"></head>'
    "<body><main><h1>TinyRM</h1><h2>Score a file</h2><div id=panel></div></main></body></html>"
)
MOUNT = """async (state) => {
    const [{ mountFile }, { call }] = await Promise.all([import("/page/file.js"), import("/page/api.js")]);
    globalThis.opened = [];
    globalThis.calls = [];
    const counted = (path, body, signal) => {
        calls.push(body.items.length);
        return (globalThis.replaced ?? call)(path, body, signal);
    };
    mountFile(document.getElementById("panel"), { call: counted, state, open: (one) => opened.push(one) });
}"""
STATE = {"prompt": "", "responses": ["", ""], "domain": "safety", "models": []}
HOSTILE = (
    """<img src=x onerror="window.pwned=1"><script>window.pwned=1</script> [a](javascript:window.pwned=1) \u2028 '"\\"""
)


@pytest.fixture(scope="module")
def service() -> Iterator[Process]:
    with started(STARTER) as one:
        yield one


@contextmanager
def opened(browser: Browser, service: Process, **options: Any) -> Iterator[Page]:
    """Open the panel alone, under the policy of the page. Fail if code of a text runs."""
    with watched(browser, service, ignored="the server responded with a status of", **options) as page:
        page.route("**/panel", lambda route: route.fulfill(body=PANEL, content_type="text/html", headers=POLICY))
        page.goto("/panel")
        page.evaluate(MOUNT, STATE)
        yield page
        assert page.evaluate("window.pwned") is None


POLICY = {"Content-Security-Policy": PAGE_POLICY}


@pytest.fixture
def page(browser: Browser, service: Process) -> Iterator[Page]:
    with opened(browser, service) as one:
        yield one


def choose(page: Page, content: bytes, name: str = "pairs.jsonl") -> None:
    page.get_by_label("Drop a file of pairs").set_input_files(
        {"name": name, "mimeType": "application/jsonl", "buffer": content}
    )


def finish(page: Page, seconds: int = 120) -> None:
    expect(page.get_by_role("status")).to_contain_text("Done.", timeout=1000 * seconds)


def score(page: Page, content: bytes) -> None:
    choose(page, content)
    finish(page)


def saved(page: Page) -> list[dict[str, Any]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download results").click()
    assert download.value.suggested_filename == "pairs.scored.jsonl"
    return [json.loads(line) for line in download.value.path().read_bytes().split(b"\n")[:-1]]


def scored_by_command(service: Process, content: bytes, folder: Path, *options: str) -> list[dict[str, Any]]:
    file, out = folder / "pairs.jsonl", folder / "out.jsonl"
    file.write_bytes(content)
    command = [sys.executable, "-m", "tinyrm", "score", str(file), "--out", str(out)]
    command += ["--url", str(service.client.base_url), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]


def lines_of(*rows: object) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs of which the chosen response is longer, mostly."""
    draw = random.Random(seed)
    words = ["the", "sky", "is", "blue", "because", "air", "scatters", "short", "waves", "of", "light"]

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length)).capitalize() + "."

    return [
        {"prompt": f"Question {number}: {text(5)[:-1]}?", "chosen": text(draw.randint(3, 12)), "rejected": text(3)}
        for number in range(1, count + 1)
    ]


def message(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


TURNS = [message("system", "Be brief."), message("user", "Why is the sky blue?")]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
FORMS: dict[str, Any] = {
    "own": {"prompt": "Why?", "response_a": "So.", "response_b": "No idea."},
    "own, with options and other fields": {
        "id": 7,
        "score": 1.0,
        "huge": 12345678901234567890,
        "prompt": "Why?",
        "response_a": "So.",
        "response_b": "No",
        "domain": "chat",
        "instruction": "Select the shorter one.",
        "swap": "off",
        "preferred": "b",
    },
    "chosen": {"prompt": "Why?", "chosen": "So.", "rejected": "No idea."},
    "other names": {"question": "Why?", "chosen_response": "So.", "rejected_response": "No idea."},
    "stack exchange": {"question": "Why?", "response_j": "So.", "response_k": "No idea."},
    "alpaca": {"instruction": "Add them.", "input": "1 and 2", "chosen": "3", "rejected": "4"},
    "system": {"system": "Be kind.", "prompt": "Why?", "chosen": "So.", "rejected": "No idea."},
    "messages": {"prompt": TURNS, "chosen": [message("assistant", "So.")], "rejected": [message("assistant", "No.")]},
    "conversations": {
        "chosen": [*TURNS, message("assistant", "Air.")],
        "rejected": [*TURNS, message("assistant", "No idea.")],
    },
    "conversations, repeated prompt": {
        "prompt": "Why is the sky blue?",
        "chosen": [*TURNS, message("assistant", "Air.")],
        "rejected": [*TURNS, message("assistant", "No idea.")],
    },
    "share": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "So."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "tools": {
        "prompt": [message("user", "1 + 2?")],
        "response_a": [
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "3", "tool_call_id": "x"},
            message("assistant", [{"type": "text", "text": "It is 3."}]),
        ],
        "response_b": [message("assistant", "It is "), message("assistant", "4.")],
    },
    "transcript": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Really?\n\nAssistant: Yes.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: Really?\n\nAssistant: No.",
    },
    "open transcript": {"prompt": "Human: Why?\n\nAssistant:", "chosen": "So.", "rejected": "No."},
    "written messages": {"prompt": json.dumps(TURNS), "chosen": "So.", "rejected": "No."},
    "repeated prompt": {"prompt": "Why is it?", "chosen": "Why is it? So.", "rejected": "Why is it?\nNo idea."},
    "hostile": {"prompt": HOSTILE, "chosen": HOSTILE + "😀", "rejected": "x" + HOSTILE},
    "already scored": {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "tinyrm": {"index": 3}},
    "line ends": {"prompt": "a\r\nb", "chosen": "c\n\nd", "rejected": "e\te"},
}
BAD: dict[str, bytes] = {
    "no JSON": b'{"prompt": "Why?", ',
    "blank": b"   ",
    "list": b"[1, 2]",
    "null": b"null",
    "not UTF-8": b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}',
    "one response": lines_of({"prompt": "Why?", "chosen": "So."}).strip(),
    "no prompt": lines_of({"response_a": "So.", "response_b": "No."}).strip(),
    "no prompt, chosen": lines_of({"chosen": "So.", "rejected": "No."}).strip(),
    "a number": lines_of({"prompt": 1, "chosen": "So.", "rejected": "No."}).strip(),
    "empty response": lines_of({"prompt": "Why?", "chosen": "", "rejected": "No."}).strip(),
    "no messages": lines_of({"prompt": [], "chosen": "So.", "rejected": "No."}).strip(),
    "other prompts": lines_of(
        {
            "chosen": [message("user", "Why?"), message("assistant", "So.")],
            "rejected": [message("user", "How?"), message("assistant", "No.")],
        }
    ).strip(),
    "unknown role": lines_of({"prompt": [message("root", "x")], "chosen": "So.", "rejected": "No."}).strip(),
    "unknown domain": lines_of({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "domain": "zoology"}).strip(),
    "domain of a number": lines_of({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "domain": 3}).strip(),
    "deep": b'{"prompt": "Why?", "chosen": "So.", "rejected": "No.", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
}


def without_message(record: dict[str, Any]) -> dict[str, Any]:
    """Drop the words of an error, which are not the same in two languages."""
    own = dict(record["tinyrm"])
    if "error" in own:
        own["error"] = own["error"]["type"]
    return record | {"tinyrm": own}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "BOM"])
def test_results_are_those_of_tinyrm_score(
    page: Page, service: Process, tmp_path: Path, end: bytes, mark: bytes
) -> None:
    good = [lines_of(row).strip() for row in FORMS.values()]
    content = mark + end.join(line for both in zip(good, BAD.values(), strict=False) for line in both)
    content += end + end.join(good[len(BAD) :]) + end + b"  " + end
    score(page, content)
    records = saved(page)
    assert list(map(without_message, records)) == list(
        map(without_message, scored_by_command(service, content, tmp_path, "--domain", "safety"))
    )
    assert sum("reply" in record["tinyrm"] for record in records) == len(FORMS)
    assert sum("error" in record["tinyrm"] for record in records) == len(BAD)


def test_a_number_of_a_line_stays_as_it_was_written(page: Page) -> None:
    choose(page, b'{ "x": 1.0, "huge": 12345678901234567890, "prompt": "Why?", "chosen": "So.", "rejected": "No." }\n')
    finish(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download results").click()
    text = download.value.path().read_text()
    assert text.startswith('{ "x": 1.0, "huge": 12345678901234567890, "prompt": "Why?", ')


def test_a_bad_line_is_listed_with_its_number_and_reason(page: Page) -> None:
    score(page, lines_of(pairs(1)[0]) + b"\n".join(BAD.values()) + b"\n" + lines_of(pairs(2)[1]))
    bad = page.locator(".bad")
    bad.locator("summary").click()
    items = bad.locator("li").all_inner_texts()
    assert len(items) == len(BAD)
    reasons = dict(zip(BAD, items, strict=True))
    assert reasons["no JSON"].startswith("Line 2 not JSON")
    assert reasons["blank"] == "Line 3 not JSON: the line is blank"
    assert "rejected is missing" in reasons["one response"]
    assert "no domain 'zoology'" in reasons["unknown domain"]
    expect(page.locator("tbody tr")).to_have_count(2)


def test_accuracy_has_the_interval_of_wilson_and_ties_are_left_out(page: Page, service: Process) -> None:
    rows = pairs(40)
    own = [
        {"prompt": row["prompt"], "response_a": row["rejected"], "response_b": row["chosen"], "preferred": word}
        for row, word in zip(rows[:20], ["model_b", "B", "response_b", "tie"] * 5, strict=True)
    ]
    score(page, lines_of(*own, *rows[20:]))
    items = [
        {"prompt": row["prompt"], "response_a": row["chosen"], "response_b": row["rejected"], "domain": "safety"}
        for row in rows
    ]
    results = service.post("/v1/compare/batch", {"items": items}).json()["results"]
    judged = [result["preferred"] == "a" for at, result in enumerate(results) if at >= 20 or at % 4 != 3]
    n, p, z = len(judged), sum(judged) / len(judged), 1.959964
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    expect(page.locator(".accuracy")).to_have_text(f"{100 * p:.1f} % accuracy")
    detail = page.locator(".accuracy + p")
    expect(detail).to_contain_text(f"95 % interval {100 * (middle - half):.1f} % to {100 * (middle + half):.1f} %")
    expect(detail).to_contain_text("of 35 labelled pairs; 5 ties left out")
    caption = page.locator("figcaption")
    expect(caption).to_contain_text(f"{sum(judged)} pairs right")
    expect(page.get_by_role("img", name="Margins of 35 pairs")).to_be_visible()


def test_without_labels_there_is_no_accuracy(page: Page) -> None:
    score(page, lines_of(*({"prompt": "Why?", "response_a": "So.", "response_b": f"No {n}."} for n in range(3))))
    expect(page.locator(".accuracy")).to_have_text("3 pairs")
    expect(page.locator(".accuracy + p")).to_contain_text("so there is no accuracy")
    assert page.locator("thead button").all_inner_texts() == ["Line", "Prompt", "Model", "Margin for A"]


def test_wrong_pairs_come_first_and_columns_sort(page: Page) -> None:
    score(page, lines_of(*pairs(60)))
    outcomes = page.locator("tbody td:nth-child(2)").all_inner_texts()
    assert len(outcomes) == 50
    assert outcomes == sorted(outcomes, reverse=True)
    assert {"wrong", "right"} == set(outcomes)
    margins = page.locator("tbody td:nth-child(6)")
    first = list(map(number, margins.all_inner_texts()[: outcomes.count("wrong")]))
    assert first == sorted(first), "the surest mistake is the first"
    result = page.get_by_role("columnheader", name="Result")
    assert result.get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Margin for A", exact=True).click()
    page.get_by_role("button", name="Margin for A", exact=True).click()
    sorted_margins = list(map(number, margins.all_inner_texts()))
    assert sorted_margins == sorted(sorted_margins, reverse=True)
    assert page.get_by_role("columnheader", name="Margin").get_attribute("aria-sort") == "descending"
    assert result.get_attribute("aria-sort") == "none"
    page.get_by_role("button", name="Line", exact=True).click()
    page.get_by_role("button", name="Next").click()
    assert page.locator("tbody td:first-child").all_inner_texts() == [str(number) for number in range(51, 61)]
    expect(page.locator(".pages")).to_contain_text("51 to 60 of 60 pairs")
    expect(page.get_by_role("button", name="Previous")).to_be_focused()


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


def test_a_row_opens_its_pair_in_the_form(page: Page) -> None:
    score(page, lines_of(FORMS["own"] | {"domain": "chat"}, FORMS["messages"], FORMS["tools"]))
    for number in (1, 2, 3):
        page.get_by_role("button", name=f"Open line {number} in the form").press("Enter")
    states = page.evaluate("opened")
    assert states[0] == {"prompt": "Why?", "responses": ["So.", "No idea."], "domain": "chat", "models": []}
    assert states[1] == {"prompt": TURNS, "responses": ["So.", "No."], "domain": "safety", "models": []}
    assert states[2]["prompt"] == [message("user", "1 + 2?")]
    assert states[2]["responses"][0].endswith("It is 3.")


def test_texts_stay_texts(page: Page) -> None:
    bad = json.dumps({HOSTILE: HOSTILE}).encode()
    score(
        page,
        lines_of(FORMS["hostile"], {"prompt": HOSTILE, "response_a": "a", "response_b": "b"}) + bad + b"\n" + b"<b>",
    )
    page.locator(".bad summary").click()
    expect(page.locator(".bad li").first).to_contain_text("<img src=x")
    expect(page.locator("tbody tr").first).to_contain_text("<script>window.pwned=1</script>")
    assert page.locator("#panel :is(img, script, a, b)").count() == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PAR1....", "Parquet"),
        (b"\n \r\n", "has no lines"),
        (b"", "has no lines"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_do(page: Page, content: bytes, reason: str) -> None:
    choose(page, content)
    expect(page.get_by_role("alert")).to_contain_text(reason)
    expect(page.locator(".results")).to_be_hidden()


def test_five_thousand_lines_leave_the_page_alive(page: Page) -> None:
    """Replace the service, so that only the page works; count how often it came to something else meanwhile."""
    page.evaluate("""() => {
        globalThis.replaced = async (path, { items }) => (globalThis.before ??= turns, {
            reply: { results: items.map(({ response_a: a }, at) => ({
                preferred: at % 3 ? "a" : "b", margin: at % 3 ? 1 : -1, confidence: "clear", probability_a: 0.7,
                probability_b: 0.3, model: "m@1",
            })) },
        });
        globalThis.turns = 0;
        const watch = () => { turns += 1; setTimeout(watch); };
        watch();
    }""")
    long = "A long text. " * 150
    rows = [row | {"chosen": row["chosen"] + long, "rejected": long} for row in pairs(5_000)]
    content = lines_of(*rows)
    assert len(content) > 15_000_000
    page.evaluate("document.querySelector('input').addEventListener('change', () => { turns = 0; }, true)")
    score(page, content)
    expect(page.locator(".accuracy + p")).to_contain_text("5,000 labelled pairs")
    expect(page.locator("tbody tr")).to_have_count(50)
    assert page.evaluate("before") >= 5, "the page had as many turns until the first call"
    assert max(page.evaluate("calls")) == 64
    assert len(saved(page)) == 5_000


def refusing(statuses: list[int], retry_after: str = "1") -> Any:
    """Return a handler that refuses the first calls with these statuses."""

    def handle(route: Route) -> None:
        if not statuses:
            route.continue_()
            return
        body = {"error": {"type": "overloaded", "message": "too much work is waiting"}}
        route.fulfill(status=statuses.pop(0), json=body, headers={"Retry-After": retry_after})

    return handle


def test_a_busy_service_is_called_again_when_it_asks_for_it(page: Page) -> None:
    page.route("**/v1/compare/batch", refusing([429, 429, 503], "2"))
    page.clock.install()
    page.clock.pause_at(page.evaluate("Date.now() / 1000 + 1"))
    choose(page, lines_of(*pairs(6)))
    expect(page.locator(".run")).to_contain_text("The service is busy: next try in 2 s")
    before = page.evaluate("calls.length")
    page.clock.run_for(1_500)
    assert page.evaluate("calls.length") == before, "not before Retry-After"
    for _ in range(5):
        page.clock.run_for(2_000)
    page.clock.resume()
    finish(page)
    expect(page.locator("tbody tr")).to_have_count(6)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_call_that_is_too_large_is_sent_in_halves(page: Page, service: Process) -> None:
    def handle(route: Route) -> None:
        if len(route.request.post_data_json["items"]) > 3:
            error = {"type": "invalid_request", "message": "items: List should have at most 3 items"}
            route.fulfill(status=422, json={"error": error})
        else:
            route.continue_()

    page.route("**/v1/compare/batch", handle)
    score(page, lines_of(*pairs(21)))
    assert [record["tinyrm"]["index"] for record in saved(page)] == list(range(21))
    assert all("reply" in record["tinyrm"] for record in saved(page))
    assert page.evaluate("calls.filter((items) => items > 3).length") <= 4, "the next calls are small at once"


def test_a_row_that_is_pressed_opens_though_results_arrive_meanwhile(page: Page) -> None:
    """Replace the service: a call waits until it is released, and then long enough for its results to be drawn."""
    page.evaluate("""() => {
        globalThis.held = [];
        globalThis.replaced = async (path, { items }) => {
            await new Promise((release) => held.push(release));
            await new Promise((later) => setTimeout(later, 400));
            const result = { preferred: "a", margin: 1, confidence: "clear", model: "m@1" };
            return { reply: { results: items.map(() => result) } };
        };
    }""")
    rows, detail = pairs(30), page.locator(".accuracy + p")
    choose(page, lines_of(*rows))
    page.wait_for_function("held.length === 2")
    page.evaluate("held.shift()()")
    expect(detail).to_contain_text("of 4 labelled pairs")
    page.get_by_role("button", name="Open line 1 in the form").hover()
    page.mouse.down()
    page.evaluate("held.shift()()")
    expect(detail).to_contain_text("of 8 labelled pairs")
    expect(page.locator("tbody tr")).to_have_count(4)
    page.mouse.up()
    assert [one["prompt"] for one in page.evaluate("opened")] == [rows[0]["prompt"]]
    expect(page.locator("tbody tr")).to_have_count(8)


def test_a_run_can_be_cancelled_and_continued(page: Page) -> None:
    held = list[Route]()
    page.route("**/v1/compare/batch", lambda route: held.append(route))  # noqa: PLW0108 - a method of a list is refused
    choose(page, lines_of(*pairs(30)))
    expect(page.get_by_role("progressbar", name="Pairs scored")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_contain_text("Stopped. 30 pairs not scored yet")
    page.unroute("**/v1/compare/batch")
    page.get_by_role("button", name="Continue").click()
    finish(page)
    assert len(saved(page)) == 30
    expect(page.get_by_role("button", name="Continue")).to_be_hidden()


def test_an_error_of_every_line_stops_the_run(page: Page) -> None:
    page.evaluate(MOUNT, STATE | {"models": ["nobody"]})
    choose(page, lines_of(*pairs(30)))
    expect(page.get_by_role("alert")).to_contain_text("unknown_model")
    expect(page.get_by_role("status")).to_contain_text("Stopped. 30 pairs not scored yet")
    expect(page.get_by_role("button", name="Continue")).to_be_visible()


def test_a_file_can_be_dropped(page: Page) -> None:
    script = """(text) => {
        const data = new DataTransfer();
        data.items.add(new File([text], "pairs.jsonl"));
        const area = document.querySelector(".drop");
        area.dispatchEvent(new DragEvent("dragover", { dataTransfer: data, bubbles: true, cancelable: true }));
        const marked = area.classList.contains("over");
        area.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        return [marked, area.classList.contains("over")];
    }"""
    assert page.evaluate(script, lines_of(*pairs(3)).decode()) == [True, False]
    finish(page)
    expect(page.locator("tbody tr")).to_have_count(3)


def test_a_user_without_a_file_gets_example_pairs(page: Page) -> None:
    page.get_by_role("button", name="Use example pairs").click()
    finish(page)
    expect(page.locator(".accuracy + p")).to_contain_text("of 12 labelled pairs.")
    assert set(page.locator("tbody td:nth-child(5)").all_inner_texts()) == {"A", "B"}
    expect(page.locator(".bad")).to_be_hidden()
    expect(page.locator(".results")).to_contain_text("in the domain safety where a line has none of its own")


def test_another_file_replaces_the_first(page: Page) -> None:
    held = list[Route]()
    page.route("**/v1/compare/batch", lambda route: held.append(route))  # noqa: PLW0108 - a method of a list is refused
    choose(page, lines_of(*pairs(30)))
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.unroute("**/v1/compare/batch")
    score(page, lines_of(*pairs(2)))
    expect(page.locator("tbody tr")).to_have_count(2)


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    score(page, lines_of(*pairs(60)) + b"bad\n")
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(70):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || document.activeElement.id"))
    texts = " ".join(reached)
    for control in ("file-input", "What a line looks like", "1 line without a result", "Result", "Question", "Next"):
        assert control in texts, control
    assert "Download results" in texts


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_barrier_and_nothing_overflows(
    browser: Browser, service: Process, viewport: object, scheme: str
) -> None:
    with opened(browser, service, viewport=viewport, color_scheme=scheme) as page:
        assert barriers(page) == []
        page.get_by_text("What a line looks like").click()
        score(page, lines_of(*pairs(60)) + b"bad\n")
        page.locator(".bad summary").click()
        assert barriers(page) == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def barriers(page: Page) -> list[Any]:
    return [(found["id"], found["nodes"][0]["html"]) for found in Axe().run(page).response["violations"]]
