"""Run the commands of the README, and check the links and the paths that pages name.

tests/test_code_blocks.py checks the blocks of all pages.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyrm
from service.__main__ import settings_table
from tests.conftest import REPOSITORY
from tests.support import pages
from tests.support.processes import STARTER, Process, started
from tools import site

PAGES = {file.name: file.read_text() for file in sorted((REPOSITORY / "docs").glob("*.md"))}
SETTINGS = PAGES["settings.md"]
BLOCKS = [block for block in pages.all_blocks() if block.page == "README.md" and block.is_run]


def blocks(language: str) -> list[str]:
    return [block.text for block in BLOCKS if block.language == language]


def commands(first_word: str) -> list[str]:
    every = [command.text for block in BLOCKS if block.language == "bash" for command in pages.commands_of(block)]
    return [command for command in every if command.split()[0] == first_word]


@pytest.fixture(scope="module")
def service() -> Iterator[Process]:
    with started(STARTER) as running:
        yield running


@pytest.mark.parametrize("command", commands("curl"), ids=lambda c: " ".join(c.split()[:3]))
def test_curl_commands_answer(command: str, service: Process) -> None:
    done = subprocess.run(
        shlex.split(command.replace("localhost:8000", f"localhost:{service.port}")),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "error" not in json.loads(done.stdout)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(
    block: str, service: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    exec(compile(block.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}"), "README.md", "exec"), {})
    assert capsys.readouterr().out.split()[0] in ("a", "b", "tie")


@pytest.mark.slow
def test_python_blocks_are_typed(tmp_path: Path) -> None:
    """A user's own mypy accepts them, as strict as it can be."""
    files = []
    for number, block in enumerate(blocks("python")):
        files.append(tmp_path / f"block_{number}.py")
        files[-1].write_text(block)
    words = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--follow-imports", "silent"]
    done = subprocess.run([*words, *map(str, files)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, len(files)) == (0, 2), done.stdout


def test_the_package_exports_what_it_lists() -> None:
    assert all(hasattr(tinyrm, name) for name in tinyrm.__all__)
    assert set(tinyrm.__all__) <= set(dir(tinyrm))


@pytest.mark.parametrize("command", commands(".venv/serve/bin/tinyrm"))
def test_tinyrm_commands_run(command: str, service: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."}\n')
    words = [sys.executable, "-m", "tinyrm", *shlex.split(command)[1:]]
    words += ["--url", f"http://127.0.0.1:{service.port}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout or (tmp_path / "scored.jsonl").read_text()


@pytest.mark.parametrize(
    "command", sorted({command.text for command in pages.commands("make") if command.text.startswith("make ")})
)
def test_make_verbs_exist(command: str) -> None:
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=REPOSITORY, check=True, capture_output=True)


def test_reply_has_the_keys_shown(service: Process) -> None:
    (shown,) = map(json.loads, blocks("json"))
    answered = service.post("/v1/compare", {"prompt": "p", "response_a": "a", "response_b": "b"}).json()
    assert list(answered) == list(shown)


def test_the_starter_prefers_what_is_shown(service: Process) -> None:
    (shown,), (command,) = map(json.loads, blocks("json")), commands("curl")
    answered = service.post("/v1/compare", json.loads(shlex.split(command)[-1])).json()
    assert answered["preferred"] == shown["preferred"]


def test_settings_table_is_the_settings() -> None:
    assert settings_table() in SETTINGS


def headings(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize(
    "page",
    [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))],
    ids=lambda p: p.relative_to(REPOSITORY).as_posix(),
)
def test_links_and_named_paths_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if heading and linked.suffix == ".md":
            assert heading in headings(linked.read_text()), target
    for path in re.findall(
        r"`((?:tinyrm|service|service_ray|training|export|evaluation|tests|models|tools|deploy)/[\w./-]*)`", text
    ):
        assert (REPOSITORY / path).exists(), path


def test_the_index_lists_every_page() -> None:
    assert set(PAGES) - {"index.md"} <= set(re.findall(r"\]\((\w[\w-]*\.md)\)", PAGES["index.md"]))


def test_every_page_is_in_the_navigation_of_the_site_once() -> None:
    assert site.differences_of_navigation() == []
