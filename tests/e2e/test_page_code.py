"""Run what the page offers as code, as a user would paste it, with texts that break out of careless quotes."""

import ast
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support.kept import REPOSITORY
from tests.support.processes import STARTER, Process, started

pytestmark = pytest.mark.slow

HOSTILE = (
    "it's \"quoted\" `id` $HOME ${HOME} $(id) %s {x} \\ \\n \\u0041 'JSON'\nJSON\n'''\"\"\" # // */\r\n"
    "\t\x00\x07\x7f\x85\u2028\u2029\ufeff😀 é </script><script>throw 1</script><!--<script> -->"
)
PAIR: dict[str, Any] = {
    "prompt": HOSTILE + " Which?",
    "response_a": "A " + HOSTILE,
    "response_b": "B: " + HOSTILE[::-1],
    "domain": "safety",
    "instruction": "Which is 'better' \\ $x?",
    "swap": "on",
}
TURNS = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": "Yes or no?\n" + HOSTILE}]
GROUP: dict[str, Any] = {"prompt": TURNS, "responses": [HOSTILE, "Yes", "No" + HOSTILE], "domain": "chat", "swap": "on"}
CALLS = {"v1/compare": PAIR, "v1/rank": GROUP}
KEY = "sesame"


@dataclass
class Recorder:
    """A server before the service that keeps the bodies and keys it passes on, and has a page of its own."""

    service: Process
    html: str = ""
    calls: list[tuple[str, Any, str | None]] = field(default_factory=list)
    port: int = 0

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def last(self) -> tuple[str, Any, str | None]:
        return self.calls[-1]


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with started(STARTER) as service:
        record = Recorder(service)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"Content-Type": "text/html; charset=utf-8"}, record.html.encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                record.calls.append((self.path, json.loads(body), self.headers["Authorization"]))
                passed = {name: value for name, value in self.headers.items() if name.startswith("X-")}
                reply = service.client.post(
                    self.path, content=body, headers=passed | {"Content-Type": "application/json"}
                )
                own = {name: value for name, value in reply.headers.items() if name.startswith(("x-", "content-type"))}
                self.reply(reply.status_code, own, reply.content)

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Write nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            record.port = server.server_port
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield record
            server.shutdown()


@pytest.fixture(scope="module")
def page(browser: Browser, recorder: Recorder) -> Iterator[Page]:
    page = browser.new_page(base_url=str(recorder.service.client.base_url))
    page.goto("/")
    yield page
    page.close()


def snippets(page: Page, recorder: Recorder, path: str, body: object, *, needs_key: bool = False) -> dict[str, str]:
    """Return label -> code."""
    script = """async ([path, body, options]) => {
        const { snippets } = await import("/page/code.js");
        return snippets(path, body, options);
    }"""
    all_of_them = page.evaluate(script, [path, body, {"origin": recorder.origin + "/", "needsKey": needs_key}])
    return {one["label"]: one["text"] for one in all_of_them}


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"TINYRM_API_KEY": KEY, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_python(code: str, folder: Path) -> str:
    file = folder / "snippet.py"
    file.write_text(code, encoding="utf-8", newline="")
    return run([sys.executable, str(file)], folder)


def run_in_page(browser: Browser, recorder: Recorder, code: str) -> list[Any]:
    """Return what the code writes to the console from within the HTML of a page."""
    environment = f"<script>globalThis.process = {{ env: {{ TINYRM_API_KEY: '{KEY}' }} }};</script>"
    recorder.html = f"<!doctype html><meta charset=utf-8>{environment}<script type=module>{code}</script>"
    page = browser.new_page()
    try:
        with page.expect_console_message() as message:
            page.goto(recorder.origin)
        return [argument.json_value() for argument in message.value.args]
    finally:
        page.close()


def expected(recorder: Recorder, path: str) -> list[Any]:
    """Return what a snippet prints of the service's own reply."""
    reply = recorder.service.post(f"/{path}", CALLS[path]).json()
    return (
        [reply["preferred"], reply["probability_a"]] if path == "v1/compare" else [reply["order"], reply["strengths"]]
    )


def printed(values: list[Any]) -> str:
    return " ".join(map(str, values)) + "\n"


@pytest.mark.parametrize("path", CALLS)
def test_curl_sends_the_texts_as_they_are(page: Page, recorder: Recorder, path: str, tmp_path: Path) -> None:
    code = snippets(page, recorder, path, CALLS[path])["curl"]
    for shell in ("bash", "sh"):
        reply = json.loads(run([shell, "-c", code], tmp_path))
        assert recorder.last() == (f"/{path}", CALLS[path], None)
        assert [
            reply[name] for name in ("preferred", "probability_a", "order", "strengths") if name in reply
        ] == expected(recorder, path)


@pytest.mark.parametrize("label", ["Python", "Python, async"])
@pytest.mark.parametrize("path", CALLS)
def test_python_sends_the_texts_as_they_are(
    page: Page, recorder: Recorder, path: str, label: str, tmp_path: Path
) -> None:
    code = snippets(page, recorder, path, CALLS[path])[label]
    assert run_python(code, tmp_path) == printed(expected(recorder, path))
    assert recorder.last() == (f"/{path}", CALLS[path], None)


@pytest.mark.parametrize("path", CALLS)
def test_javascript_sends_the_texts_as_they_are_even_from_within_a_page(
    page: Page, browser: Browser, recorder: Recorder, path: str
) -> None:
    code = snippets(page, recorder, path, CALLS[path])["JavaScript"]
    assert run_in_page(browser, recorder, code) == expected(recorder, path)
    assert recorder.last() == (f"/{path}", CALLS[path], None)


@pytest.mark.parametrize("path", CALLS)
def test_the_reward_function_of_trl_rewards_the_same_texts(
    page: Page, recorder: Recorder, path: str, tmp_path: Path
) -> None:
    code = snippets(page, recorder, path, CALLS[path])["TRL"]
    rewards = ast.literal_eval(run_python(code, tmp_path))
    body = dict(CALLS[path])
    if path == "v1/compare":
        body["responses"] = [body.pop("response_a"), body.pop("response_b")]
    assert recorder.last() == ("/v1/rewards", body, None)
    assert rewards == recorder.service.post("/v1/rewards", body).json()["rewards"]


def test_a_key_is_a_variable_of_the_environment(
    page: Page, browser: Browser, recorder: Recorder, tmp_path: Path
) -> None:
    codes = snippets(page, recorder, "v1/compare", PAIR, needs_key=True)
    assert [label for label, code in codes.items() if "TINYRM_API_KEY" not in code] == []
    run(["bash", "-c", codes["curl"]], tmp_path)
    run_in_page(browser, recorder, codes["JavaScript"])
    for label in ("Python", "Python, async", "TRL"):
        run_python(codes[label], tmp_path)
    assert [key for *_, key in recorder.calls[-5:]] == [f"Bearer {KEY}"] * 5


def test_texts_beyond_the_length_of_an_argument_are_sent_by_curl(
    page: Page, recorder: Recorder, tmp_path: Path
) -> None:
    body = PAIR | {"response_b": "JSON\n' $x é " * 20_000}
    file = tmp_path / "call.sh"
    file.write_text(snippets(page, recorder, "v1/compare", body)["curl"])
    assert "preferred" in json.loads(run(["bash", str(file)], tmp_path))
    assert recorder.last()[1] == body


def test_a_batch_has_code_in_the_languages_that_need_no_client(page: Page, recorder: Recorder) -> None:
    assert list(snippets(page, recorder, "v1/compare/batch", {"items": [PAIR]})) == ["curl", "JavaScript"]
