"""docs/logs.md lists every event of the service, with its level and fields, and its queries are LogQL."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.pages import blocks

PAGE = (REPOSITORY / "docs" / "logs.md").read_text()
LEVELS = {"exception": "error"} | {level: level for level in ("debug", "info", "warning", "error", "critical")}
# Keyword arguments that are spread: an expression of the code -> the fields that it adds.
SPREAD = {
    "times": {"start_s", "imports_s", "bundles_s", "application_s", "engine_s"},
    "describe_failure(error)": {"type", "reason"},
    "{name: count for name, count in counts.items() if count}": {"items", "tokens"},
}
# An event with a name in it, and the names that it can have.
NAMED = {"{name} does not start": ["engine does not start", "worker does not start"]}
# event -> level and fields
Events = dict[str, tuple[str, frozenset[str]]]


def logged() -> Events:
    """Return what the code logs."""
    found: Events = {}
    for method, call in log_calls():
        for event in events(call.args[0]):
            entry = LEVELS[method], fields_of(method, call)
            assert found.setdefault(event, entry) == entry, event
    return found


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield every call such as log.info(...), with the name of the method."""
    for file in sorted((REPOSITORY / "service").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=method)) if method in LEVELS:
                    yield method, node


def events(text: ast.expr) -> list[str]:
    name = ast.literal_eval(text) if isinstance(text, ast.Constant) else ast.unparse(text)[2:-1]
    return NAMED.get(name, [name])


def fields_of(method: str, call: ast.Call) -> frozenset[str]:
    fields = {"exception"} if method == "exception" else set()
    for keyword in call.keywords:
        if keyword.arg is None:
            fields |= SPREAD[ast.unparse(keyword.value)]
        else:
            fields.add({"exc_info": "exception"}.get(keyword.arg, keyword.arg))
    return frozenset(fields)


def documented() -> Events:
    """Return what the page's tables list."""
    found: Events = {}
    for names, level, fields in re.findall(r"^\| ([^|]+) \| (\w+) \| ([^|]*) ?\| [^|]+ \|$", PAGE, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", names):
            found[name] = level, frozenset(re.findall(r"`(\w+)`", fields))
    return found


def test_every_event_is_listed_with_its_level_and_fields() -> None:
    assert documented() == logged()


def test_no_field_is_a_text_of_a_request() -> None:
    fields = set().union(*(fields for _, fields in logged().values()))
    assert not fields & {"prompt", "response", "response_a", "response_b", "responses", "instruction", "text", "texts"}


@pytest.mark.slow
def test_every_query_is_logql(tmp_path: Path) -> None:
    queries = [line for block in blocks("logql") for line in block.text.splitlines() if not line.startswith("#")]
    assert len(queries) >= 5
    assert faults([*queries, '{service="tinyrm" | json'], tmp_path) == [[]] * len(queries) + [[18]]


def faults(queries: list[str], folder: Path) -> list[list[int]]:
    """Return where each query is wrong, by the parser that Grafana's editor uses."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine, which the grammar of LogQL comes from")
    (folder / "package.json").write_text('{"type": "module"}')
    options = ["--fetch-retries=0", "--fetch-timeout=20000", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"]
    command = [npm, "install", *options, "@grafana/lezer-logql@0.4.2", "@lezer/lr@1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"npm could not install the grammar of LogQL: {done.stderr[-300:]}")
    (folder / "parse.js").write_text(
        """
import {parser} from "@grafana/lezer-logql";
const faults = query => {
  const places = [];
  parser.parse(query).iterate({enter: node => { if (node.type.isError) places.push(node.from); }});
  return places;
};
console.log(JSON.stringify(JSON.parse(process.argv[2]).map(faults)));
"""
    )
    words = ["node", "parse.js", json.dumps(queries)]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
    return [list(places) for places in json.loads(result)]
