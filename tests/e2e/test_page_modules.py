"""Test the modules of the page that need no service, in a real Chromium under the page's own policy.

Markdown, the difference of two texts, and what keeps texts: links, history and files.
"""

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route

from service.api.pages import FOLDER, PAGE_POLICY

pytestmark = pytest.mark.slow

KINDS = {".js": "text/javascript", ".css": "text/css", ".woff2": "font/woff2"}
SHEETS = ("style.css", "markdown.css", "diff.css")
EMPTY = (
    '<!doctype html><html lang="en"><head><title>modules</title>'
    + "".join(f'<link rel="stylesheet" href="page/{sheet}">' for sheet in SHEETS)
    + '</head><body><main><h1>One</h1><h2>Two</h2><h3>Three</h3><div id="root"></div></main></body></html>'
)


@pytest.fixture(scope="module")
def opened(browser: Browser) -> Iterator[tuple[Page, list[str]]]:
    """Open an empty page with the files of the real one. Return it with what is written to the console."""
    context = browser.new_context(base_url="http://localhost")
    context.route("**/*", send)
    one, messages = context.new_page(), list[str]()
    one.on("console", lambda message: messages.append(message.text))
    one.on("pageerror", lambda error: messages.append(str(error)))
    one.goto("/")
    yield one, messages
    context.close()


@pytest.fixture
def page(opened: tuple[Page, list[str]]) -> Iterator[Page]:
    """Empty the page. Fail if anything is written to the console, or runs in it."""
    page, messages = opened
    page.evaluate("document.getElementById('root').replaceChildren()")
    yield page
    assert page.evaluate("window.pwned") is None
    assert messages == []
    assert page.url == "http://localhost/"


def send(route: Route) -> None:
    """Send a file of the folder, or the empty page."""
    file = FOLDER / route.request.url.rpartition("/page/")[2]
    if file.suffix in KINDS and file.is_file():
        route.fulfill(path=file, content_type=KINDS[file.suffix])
    else:
        route.fulfill(body=EMPTY, content_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY})


def markdown(page: Page, text: str) -> str:
    """Return the markup of a text's DOM."""
    script = """async (text) => {
        const { renderMarkdown } = await import("/page/markdown.js");
        const root = document.getElementById("root");
        root.className = "markdown";
        root.replaceChildren(renderMarkdown(text));
        return root.innerHTML;
    }"""
    html: str = page.evaluate(script, text)
    return html


def diff(page: Page, a: str, b: str) -> list[str]:
    script = """async ([a, b]) => {
        const { renderDiff } = await import("/page/diff.js");
        return renderDiff(a, b).map((side) => {
            const root = document.createElement("div");
            root.className = "diff";
            root.append(side);
            document.getElementById("root").append(root);
            return root.innerHTML;
        });
    }"""
    sides: list[str] = page.evaluate(script, [a, b])
    return sides


def barriers(page: Page) -> list[Any]:
    return [(found["id"], found["nodes"][0]["html"]) for found in Axe().run(page).response["violations"]]


CODE = '<pre tabindex="0" role="group" aria-label="Code{}"{}><code>{}</code></pre>'
TABLE = '<div class="table" tabindex="0" role="group" aria-label="Table"><table>{}</table></div>'


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("plain", "<p>plain</p>"),
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("# A\n### B #\n## C\ntext", "<h4>A</h4><h5>B</h5><h5>C</h5><p>text</p>"),
        ("#hashtag", "<p>#hashtag</p>"),
        ("*a* _b_ **c** __d__ ***e*** ~~f~~", "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> "
         "<em><strong>e</strong></em> <s>f</s></p>"),
        ("snake_case_name 2 * 3 * 4 a**b", "<p>snake_case_name 2 * 3 * 4 a**b</p>"),
        ("**a *b* c** *d", "<p><strong>a <em>b</em> c</strong> *d</p>"),
        (r"\*a\* \[b](c)", "<p>*a* [b](c)</p>"),
        ("`a *b* <i>` ``c ` d`` `e", "<p><code>a *b* &lt;i&gt;</code> <code>c ` d</code> `e</p>"),
        ("- a\n- b\n  - c\n\ntext", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>text</p>"),
        ("3. a\n4. b\n  * c\n5. d", '<ol start="3"><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ol>'),
        ("1. a\n\n   more\n2. b", "<ol><li><p>a</p><p>more</p></li><li>b</li></ol>"),
        ("- a\n\t- b", "<ul><li>a<ul><li>b</li></ul></li></ul>"),
        ("   - a\n   - b", "<ul><li>a</li><li>b</li></ul>"),
        ("In the year\n1999. It was", "<p>In the year<br>1999. It was</p>"),
        ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
        ("a\n\n---\n\n* * *", "<p>a</p><hr><hr>"),
        ("```python\nif a < b:\n    pass\n```\nafter",
         CODE.format(", python", ' data-language="python"', "if a &lt; b:\n    pass") + "<p>after</p>"),
        ("~~~\nno end\n\n# x", CODE.format("", "", "no end\n\n# x")),
        ("a\n\n    indented\n\n    code\n", "<p>a</p>" + CODE.format("", "", "indented\n\ncode")),
        ("|a|b|\n|:-:|--:|\n|1 \\| 2|`c`|x|\n\nend", TABLE.format(
            '<thead><tr><th class="to-center">a</th><th class="to-right">b</th></tr></thead>'
            '<tbody><tr><td class="to-center">1 | 2</td><td class="to-right"><code>c</code></td></tr></tbody>')
         + "<p>end</p>"),
        ("a | b\nno table", "<p>a | b<br>no table</p>"),
        ("line<br>break", "<p>line<br>break</p>"),
    ],
)  # fmt: skip
def test_markdown_becomes_elements(page: Page, text: str, html: str) -> None:
    assert markdown(page, text) == html


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("[a](https://x.example/b_c_(d)?q=1#e)", ["https://x.example/b_c_(d)?q=1#e"]),
        ("see https://x.example/a_b_c. (http://y.example)", ["https://x.example/a_b_c", "http://y.example/"]),
        ("<mailto:me@x.example> <https://x.example>", ["mailto:me@x.example", "https://x.example/"]),
        ("![a picture](https://x.example/p.png)", ["https://x.example/p.png"]),
        ('[a *b* [c]](https://x.example) [d](https://y.example "title")', ["https://x.example/", "https://y.example/"]),
        ("[a https://x.example b](https://y.example)", ["https://y.example/"]),
    ],
)
def test_links_go_to_web_and_mail_only_and_leak_nothing(page: Page, text: str, addresses: list[str]) -> None:
    markdown(page, text)
    links = page.locator("#root a")
    found = [link.get_attribute("href") for link in links.all()]
    assert found == addresses
    for link in links.all():
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert link.get_attribute("target") == "_blank"


ATTACKS = (
    "<img src=x onerror='window.pwned=1'>",
    "<script>window.pwned=1</script>",
    "<svg/onload=window.pwned=1>",
    "[click](javascript:window.pwned=1)",
    "[click](JaVaScRiPt:window.pwned=1)",
    "[click](java&#115;cript:window.pwned=1)",
    "[click](\x01javascript:window.pwned=1)",
    "[click](data:text/html,<script>window.pwned=1</script>)",
    "[click](vbscript:msgbox)",
    "[click](//evil.example)",
    "[click](file:///etc/passwd)",
    "<javascript:window.pwned=1>",
    "![x](javascript:window.pwned=1)",
    "[![x](x)](javascript:window.pwned=1)",
    '[a](https://x.example "onmouseover=window.pwned=1")',
    '[a](https://x.example/"onmouseover="window.pwned=1)',
    "```<img src=x onerror=window.pwned=1>\n<script>window.pwned=1</script>\n```",
    '```"onload="window.pwned=1"\ncode\n```',
    "|<img src=x onerror=window.pwned=1>|\n|-|\n|<script>window.pwned=1</script>|",
    "# <iframe src=javascript:window.pwned=1>",
    "> - 1. <a href='javascript:window.pwned=1'>x</a>",
    "<style>*{display:none}</style><base href=//evil.example><form action=//evil.example>",
)
TAGS = "P BR EM STRONG S CODE PRE A SPAN UL OL LI BLOCKQUOTE HR H4 H5 H6 DIV TABLE THEAD TBODY TR TH TD"


@pytest.mark.parametrize("text", ATTACKS)
def test_markup_in_markdown_stays_text(page: Page, text: str) -> None:
    """The fixture checks that nothing ran."""
    markdown(page, text)
    tags = page.locator("#root *").evaluate_all("all => all.map((one) => one.tagName)")
    assert set(tags) <= set(TAGS.split())
    names = page.locator("#root *").evaluate_all("all => all.flatMap((one) => one.getAttributeNames())")
    assert set(names) <= {"class", "href", "rel", "target", "tabindex", "role", "aria-label", "data-language", "start"}
    for link in page.locator("#root a").all():
        assert str(link.get_attribute("href")).startswith(("http://", "https://", "mailto:"))


LONG = {
    "stars": "*a " * 30_000,
    "nested stars": "*a" * 20_000 + "a*" * 20_000,
    "mixed marks": "**_a_* " * 15_000,
    "brackets": "[" * 100_000,
    "links without end": "[a](" * 25_000,
    "backticks": "".join("`" * (i % 300) + " " for i in range(1_000)),
    "quotes": ">" * 100_000,
    "deep lists": "\n".join("  " * i + "- a" for i in range(400)),
    "headings": "# a\n" * 25_000,
    "fences": "```" + " " * 100_000 + "`",
    "rules": "- " * 50_000 + "x",
    "pipes": ("|" * 1_000 + "\n") * 100,
    "tables": "|a" * 300 + "|\n" + "|-" * 300 + "|\n" + "|\n" * 30_000,
    "lines": "a\n" * 100_000,
    "beyond the limit": "word " * 100_000,
    "escapes": "\\" * 100_000,
    "addresses": "https://a" * 12_000,
}


@pytest.mark.parametrize("name", LONG)
def test_a_text_that_is_made_to_cost_time_does_not(page: Page, name: str) -> None:
    """Work that grew as the square of these lengths would not end."""
    markdown(page, LONG[name])
    text = page.locator("#root").evaluate("root => root.textContent.length")
    assert text > 0 or name in ("quotes", "pipes", "rules")


def test_twenty_six_long_responses_make_a_number_of_nodes_that_their_length_limits(page: Page) -> None:
    """Count every node that is made, also those that are thrown away again."""
    script = """async (texts) => {
        const { renderMarkdown } = await import("/page/markdown.js");
        let made = 0;
        for (const name of ["createElement", "createTextNode"]) {
            document[name] = (...given) => (made += 1, Document.prototype[name].call(document, ...given));
        }
        const shares = texts.map((text) => {
            made = 0;
            document.getElementById("root").append(renderMarkdown(text));
            return made / text.length;
        });
        delete document.createElement;
        delete document.createTextNode;
        return shares;
    }"""
    kinds = [SAMPLE, *(LONG[name] for name in ("nested stars", "mixed marks", "links without end", "pipes", "lines"))]
    texts = [(kinds[at % len(kinds)] * 30)[:10_000] for at in range(26)]
    shares = page.evaluate(script, texts)
    assert max(shares) <= 1.5
    assert shares[0] < 0.2, "an ordinary text"


def test_markdown_of_a_long_answer_is_complete(page: Page) -> None:
    markdown(page, "word " * 100_000)
    assert page.locator("#root").evaluate("root => root.textContent.replaceAll(' ', '').length") == 400_000


def test_a_diff_marks_what_differs(page: Page) -> None:
    a, b = diff(page, "The sky is blue today.", "The sky was blue.")
    assert a == "The sky <del>is</del> blue <del>today</del>."
    assert b == "The sky <ins>was</ins> blue."


def test_a_diff_keeps_every_character_and_shows_indentation(page: Page) -> None:
    code = "def f():\n    return 1\n", "def f():\r\n        return 1\n\n\n"
    sides = diff(page, *code)
    texts = page.locator(".diff").evaluate_all("all => all.map((one) => one.textContent)")
    assert texts == list(code)
    assert "<del>" in sides[0]


def test_a_diff_compares_characters_where_words_have_no_spaces(page: Page) -> None:
    assert diff(page, "今日は晴れ", "今日は雨") == ["今日は<del>晴れ</del>", "今日は<ins>雨</ins>"]


def test_equal_and_empty_texts_have_a_diff(page: Page) -> None:
    assert diff(page, "same text", "same text") == ["same text", "same text"]
    assert diff(page, "", "new") == ["", "<ins>new</ins>"]
    assert diff(page, "", "") == ["", ""]


def test_markup_in_a_diff_stays_text(page: Page) -> None:
    attacks = "\n".join(ATTACKS)
    diff(page, attacks, attacks.replace("window", "<b>window</b>"))
    assert page.locator(".diff :not(del, ins)").count() == 0


def test_a_diff_of_twenty_thousand_words_is_exact_where_texts_are_alike_and_ends_where_they_are_not(page: Page) -> None:
    script = """async () => {
        const { compareWords, renderDiff } = await import("/page/diff.js");
        let seed = 1;
        const random = (below) => ((seed = (48271 * seed) % 2147483647) % below);
        const words = (kinds) => Array.from({ length: 20000 }, () => `w${random(kinds)}`);
        const text = words(1000);
        const edited = text.map((word, at) => (at % 20 ? word : `new${at}`));
        const changed = compareWords(text, edited).map((marks) => marks.reduce((sum, mark) => sum + mark));
        const kept = [];
        for (const kinds of [2, 1000, 100000]) {
            const pair = [words(kinds), words(kinds)];
            const marks = compareWords(...pair);
            kept.push(pair.map((side, at) => side.filter((_, word) => !marks[at][word]).join(" ")));
        }
        const sides = renderDiff(text.join(" "), words(1000).join(" "));
        return { changed, same: kept.map(([a, b]) => a === b), lengths: sides.map((side) => side.childNodes.length) };
    }"""
    found = page.evaluate(script)
    assert found["changed"] == [1000, 1000]
    assert found["same"] == [True, True, True]
    assert all(0 < length < 60_000 for length in found["lengths"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier_in_what_is_rendered(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    markdown(page, SAMPLE)
    diff(page, *TWO)
    assert json.dumps(barriers(page)) == "[]"


def test_a_change_differs_from_the_text_by_more_than_colour(page: Page) -> None:
    diff(page, *TWO)
    lines = "one => getComputedStyle(one).textDecorationLine"
    assert page.locator("del").first.evaluate(lines) == page.locator("ins").first.evaluate(lines) == "underline"
    assert page.locator(".diff").first.evaluate(lines) == "none"


STATE = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "\u2028 'é' \\ </script> 😀\0"}],
    "responses": ["", "B" * 5_000, "<b>C</b>"],
    "domain": "safety",
    "models": ["one", "two@abc"],
}
PLAIN_STATE = {"prompt": "Why?", "responses": ["A", "B"], "domain": "", "models": []}


def share(page: Page, expression: str, value: object = None) -> Any:
    """Return what an expression with `value` and the exports of the module returns."""
    code = f"""async (value) => {{
        const {{ encodeState, decodeState, history, exportResult }} = await import("/page/share.js");
        return {expression};
    }}"""
    return page.evaluate(code, value)


def packed(data: bytes) -> str:
    """Return bytes as the fragment of a link."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    return "z." + base64.urlsafe_b64encode(pack.compress(data) + pack.flush()).decode().rstrip("=")


@pytest.mark.parametrize("state", [STATE, PLAIN_STATE])
def test_a_state_survives_a_link(page: Page, state: dict[str, Any]) -> None:
    fragment = share(page, "await encodeState(value)", state)
    assert fragment.startswith("z.")
    assert len(fragment) < 500, "a long text is compressed"
    page.evaluate("fragment => { location.hash = fragment; }", fragment)
    try:
        assert share(page, "await decodeState(location.hash)") == state
    finally:
        page.evaluate("history.replaceState(null, '', '/')")


def test_a_browser_that_cannot_compress_makes_a_longer_link(page: Page) -> None:
    page.evaluate("() => { globalThis.kept = CompressionStream; globalThis.CompressionStream = undefined; }")
    fragment = share(page, "await encodeState(value)", STATE)
    page.evaluate("() => { globalThis.CompressionStream = kept; }")
    assert fragment.startswith("j.")
    assert share(page, "await decodeState(value)", fragment) == STATE


@pytest.mark.parametrize(
    "fragment",
    [
        "",
        "#",
        "#result",
        "z.",
        "j.",
        "z.!!!",
        "j.e30",
        packed(b""),
        packed(b"not json"),
        packed(b"null"),
        packed(b"[]"),
        packed(b"\xff\xfe"),
        packed(json.dumps(PLAIN_STATE).encode())[:-4],
        packed(json.dumps(PLAIN_STATE | {"prompt": 1}).encode()),
        packed(json.dumps(PLAIN_STATE | {"prompt": []}).encode()),
        packed(json.dumps(PLAIN_STATE | {"prompt": [{"role": "root", "content": "x"}]}).encode()),
        packed(json.dumps(PLAIN_STATE | {"prompt": [None]}).encode()),
        packed(json.dumps(PLAIN_STATE | {"responses": ["x"] * 27}).encode()),
        packed(json.dumps(PLAIN_STATE | {"responses": "xy"}).encode()),
        packed(json.dumps(PLAIN_STATE | {"models": ["a", "b", "c"]}).encode()),
        packed(json.dumps(PLAIN_STATE | {"domain": {}}).encode()),
        "j." + "A" * 3_000_000,
    ],
)
def test_a_corrupt_link_is_no_state(page: Page, fragment: str) -> None:
    assert share(page, "await decodeState(value)", fragment) is None


def test_a_link_that_would_unpack_to_gigabytes_stops_at_the_limit(page: Page) -> None:
    """Count what the browser unpacks: a little more than the limit, however much would follow."""
    page.evaluate("""() => {
        globalThis.unpacked = 0;
        globalThis.kept = DecompressionStream;
        globalThis.DecompressionStream = class {
            constructor(kind) {
                const inner = new kept(kind);
                const count = new TransformStream({
                    transform(chunk, out) { globalThis.unpacked += chunk.length; out.enqueue(chunk); },
                });
                this.writable = inner.writable;
                this.readable = inner.readable.pipeThrough(count);
            }
        };
    }""")
    bomb = packed(b'{"prompt": "' + b"a" * 300_000_000)
    assert len(bomb) < 500_000
    assert share(page, "await decodeState(value)", bomb) is None
    unpacked = page.evaluate("() => { globalThis.DecompressionStream = kept; return unpacked; }")
    assert 8 * 2**20 < unpacked < 16 * 2**20


def test_unknown_fields_of_a_link_are_dropped(page: Page) -> None:
    more = PLAIN_STATE | {"key": "x", "__proto__": {"polluted": True}}
    assert share(page, "await decodeState(value)", packed(json.dumps(more).encode())) == PLAIN_STATE


def test_the_history_holds_each_comparison_once_and_the_newest_first(page: Page) -> None:
    share(page, "history.clear()")
    for prompt in ("one", "two", "one"):
        share(page, "history.add(value, 'Leans A')", PLAIN_STATE | {"prompt": prompt})
    entries = share(page, "history.list()")
    assert [entry["state"]["prompt"] for entry in entries] == ["one", "two"]
    assert entries[0]["summary"] == "Leans A"
    share(page, "history.remove(value)", entries[0]["id"])
    assert [entry["state"]["prompt"] for entry in share(page, "history.list()")] == ["two"]
    share(page, "history.clear()")
    assert share(page, "history.list()") == []
    assert page.evaluate("localStorage.length") == 0


def test_the_history_is_limited_and_drops_the_oldest_where_there_is_no_room(page: Page) -> None:
    share(page, "history.clear()")
    many = "Array.from({ length: 60 }, (_, at) => history.add({ ...value, prompt: String(at) })).length"
    share(page, many, PLAIN_STATE)
    assert [entry["state"]["prompt"] for entry in share(page, "history.list()")] == [str(at) for at in range(59, 9, -1)]
    large = "[1, 2, 3, 4].map((at) => history.add({ ...value, prompt: String(at).repeat(900_000) })).length"
    share(page, large, PLAIN_STATE)
    assert [entry["state"]["prompt"][0] for entry in share(page, "history.list()")] == ["4", "3"]
    # Something else has filled the storage.
    page.evaluate("localStorage.clear(); localStorage.setItem('other', 'x'.repeat(4_500_000))")
    share(page, "[1, 2].map((at) => history.add({ ...value, prompt: String(at).repeat(500_000) })).length", PLAIN_STATE)
    assert [entry["state"]["prompt"][0] for entry in share(page, "history.list()")] == ["2"]
    page.evaluate("localStorage.clear()")


@pytest.mark.parametrize(
    "stored", ["not json", "{}", "[1, null]", '[{"id": "x", "at": 1, "summary": "", "state": {}}]']
)
def test_a_history_that_something_else_wrote_is_empty(page: Page, stored: str) -> None:
    page.evaluate("stored => localStorage.setItem('tinyrm.history', stored)", stored)
    assert share(page, "history.list()") == []
    share(page, "history.add(value)", PLAIN_STATE)
    assert len(share(page, "history.list()")) == 1
    share(page, "history.clear()")


def test_a_browser_that_denies_its_storage_has_a_history_until_the_page_is_closed(browser: Browser) -> None:
    context = browser.new_context(base_url="http://localhost")
    context.route("**/*", send)
    page = context.new_page()
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    page.goto("/")
    share(page, "history.add(value, 'one').id", PLAIN_STATE)
    share(page, "history.add(value, 'two').id", STATE)
    assert [entry["summary"] for entry in share(page, "history.list()")] == ["two", "one"]
    share(page, "history.clear()")
    assert share(page, "history.list()") == []
    context.close()


def test_a_result_is_saved_as_a_json_file(page: Page) -> None:
    with page.expect_download() as download:
        share(page, "exportResult(value, { preferred: 'a' })", STATE)
    assert download.value.suggested_filename == "tinyrm-result.json"
    saved = json.loads(download.value.path().read_text())
    assert {name: saved[name] for name in ("state", "result")} == {"state": STATE, "result": {"preferred": "a"}}
    assert saved["made"].endswith("Z")


SAMPLE = """# How to add numbers

A **short** answer with *emphasis*, `code` and a [link](https://example.com/a_b).

1. First, import it:
   ```python
   def add(a: int, b: int) -> int:
       return a + b  # a long line that is wider than the box in which it is shown, so that it must scroll sideways
   ```
2. Then call it:
   - with two numbers
   - or with more

> A quote of
> two lines

| size | accuracy | note |
|-----:|:--------:|------|
| 1 | **64.7 %** | starter |
| 2 | 91.2 % | `large` |

---

## Notes
<b>HTML</b> stays text, ~~as it should~~.
"""
TWO = (
    "The sky is blue because air scatters blue light more than red.\nIt is called scattering.",
    "The sky looks blue because air scatters short waves more.\nIt is called Rayleigh scattering.\n\nAt dusk, red.",
)
