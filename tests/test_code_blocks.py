"""Check every code block of README.md and of docs/. Quick checks are of all blocks; slow ones run what they can."""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from service.settings import Settings
from tests.conftest import REPOSITORY
from tests.deploy.programs import program
from tests.support.pages import Block, Command, all_blocks, blocks, commands, commands_of, pages
from tests.support.processes import STARTER, Process, started
from tinyrm.api import CompareRequest, RankRequest, RewardsRequest, ScoreRequest, TokensRequest
from tinyrm.preferences import read_preference

# Programs of others: their words are not checked, the shell's syntax is.
OF_OTHERS = {
    *(
        "[",
        "{",
        "}",
        "accelerate",
        "cat",
        "cd",
        "cp",
        "curl",
        "docker",
        "echo",
        "export",
        "for",
        "git",
        "grep",
        "gunzip",
    ),
    *(
        "head",
        "helm",
        "hf",
        "jq",
        "keys",
        "keys()",
        "kubectl",
        "ls",
        "mkdir",
        "mv",
        "openssl",
        "ray",
        "rm",
        "serve",
        "set",
    ),
    *("sha256sum", "source", "tar", "unset", "zcat"),
}
OURS = ("service", "training", "export", "evaluation", "tinyrm", "loadtests", "tools", "service_ray")
# Environment variables of programs and of tests, beside those of the service.
OTHER_VARIABLES = {"TINYRM_URL", "TINYRM_API_KEY", "TINYRM_CACHE", "TINYRM_SLIME_SOURCE", "TINYRM_SERVICE_HOST"}
# What the examples for reading leave to the reader.
GIVEN = "prompt, responses = 'Say hello.', ['No.', 'Hello!']\n"


def of_all(items: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("item", items, ids=str)


# How a block is read, by its language


def check_json(block: Block) -> None:
    for value in json_values(block.text):
        if isinstance(value, dict) and not block.note:
            check_body(value)


def json_values(text: str) -> list[Any]:
    """Return one value, or that of each line."""
    try:
        return [json.loads(text)]
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines()]


def check_body(value: dict[str, Any]) -> None:
    """A body is one that the service accepts, and a pair one that training reads. A reply may have any keys."""
    if isinstance(value.get("prompt"), int):
        return
    if "prompt" in value and "responses" in value:
        adapter: TypeAdapter[Any] = TypeAdapter(RankRequest | RewardsRequest | ScoreRequest | TokensRequest)
        adapter.validate_python(value)
    elif "prompt" in value and "response_a" in value and "preferred" not in value:
        CompareRequest.model_validate(value)
    elif "chosen" in value:
        assert read_preference(value)


def check_yaml(block: Block) -> None:
    list(yaml.safe_load_all(block.text))


def check_python(block: Block) -> None:
    """It compiles, and what it imports from here exists."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tinyrm":
            module = importlib.import_module(node.module or "")
            assert not [name.name for name in node.names if not hasattr(module, name.name)]


def check_shell(block: Block) -> None:
    text = block.text if block.language == "bash" else "\n".join(c.text for c in commands_of(block))
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in commands_of(block) if block.is_run else []:
        for words in command.programs:
            if words[0] not in OF_OTHERS:
                check_program(words)


def check_program(words: list[str]) -> None:
    """It is one that a test below knows, and the files of the repository that it is given exist."""
    known = words[0] in ("make", "tinyrm", "pip") or bool(module_of(words)) or Path(words[0]).is_file()
    script = words[0] in ("python", "python3") and words[1].endswith(".py") and (REPOSITORY / words[1]).is_file()
    assert known or script, f"no check for {words[0]}; mark the block with <!-- not run: WHY -->"
    for word in words:
        if re.match(r"((deploy|training|examples|tests|tools)/[\w./-]+|docs/[\w-]+\.\w+)$", word):
            assert (REPOSITORY / word).exists(), word


def check_promql(block: Block) -> None:
    """Promtool reads it as the expression of a rule, where it is installed."""
    if shutil.which("promtool"):
        rules = {"groups": [{"name": "a", "rules": [{"record": "a:b", "expr": block.text}]}]}
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            yaml.safe_dump(rules, file)
            done = subprocess.run(
                ["promtool", "check", "rules", file.name], capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, done.stdout + done.stderr


def check_toml(block: Block) -> None:
    tomllib.loads(block.text)


def only_shown(block: Block) -> None:
    """Output, or a drawing."""


CHECKS: dict[str, Callable[[Block], None]] = {
    "bash": check_shell,
    "console": check_shell,
    "json": check_json,
    "logql": only_shown,  # tests/dashboards/test_logs.py has a parser for it
    "promql": check_promql,
    "python": check_python,
    "text": only_shown,
    "toml": check_toml,
    "yaml": check_yaml,
}


def test_every_block_has_a_language_with_a_check() -> None:
    without = [f"{block} [{block.language}]" for block in all_blocks() if block.language not in CHECKS]
    assert not without, f"languages are {', '.join(CHECKS)}; `text` is for output"


@pytest.mark.parametrize("page", pages())
def test_every_block_of_a_page_is_sound(page: str) -> None:
    for block in all_blocks():
        if block.page == page and block.language in CHECKS:
            try:
                CHECKS[block.language](block)
            except Exception as error:
                error.add_note(f"in {block}")
                raise


@pytest.mark.parametrize("page", pages())
def test_the_settings_that_a_page_names_exist(page: str) -> None:
    known = {f"TINYRM_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    named = set(re.findall(r"TINYRM_[A-Z][A-Z_]*[A-Z]\b(?!\*)", pages()[page]))
    assert named - known - compose_variables() == set()


@cache
def compose_variables() -> set[str]:
    return set(re.findall(r"TINYRM_[A-Z_]+", (REPOSITORY / "docker-compose.yml").read_text()))


def test_the_variables_given_to_make_are_in_the_makefile() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for command in commands("make"):
        for words in command.programs:
            for variable in [word.split("=")[0] for word in words[1:] if "=" in word]:
                assert re.search(rf"\$\({variable}\)|\$\(if \$\({variable}\)|^{variable} ", makefile, re.MULTILINE), (
                    command
                )


@pytest.mark.parametrize("verb", sorted({c.programs[-1][1] for c in commands("make")}))
def test_every_verb_of_make_exists(verb: str) -> None:
    assert re.search(rf"^{verb}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


def test_the_extras_that_pip_installs_exist() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in commands("pip"):
        for named in re.findall(r"\[([\w,]+)\]", command.text):
            assert set(named.split(",")) <= set(extras), command


def test_the_profiles_and_services_given_to_docker_compose_exist() -> None:
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    profiles = {profile for service in services.values() for profile in service.get("profiles", [])}
    for command in commands("docker"):
        for words in command.programs:
            assert {after for word, after in pairwise(words) if word == "--profile"} <= profiles, command
            files = [after for word, after in pairwise(words) if word == "-f"]
            assert all((REPOSITORY / file).exists() for file in files), command
            assert "run" not in words or set(words) & set(services), command


# Slow: what runs a service or a program


@pytest.mark.slow
@of_all([block for block in blocks("yaml") if block.page in ("docs/data.md", "docs/recipes.md", "docs/training.md")])
def test_the_keys_of_a_recipe_exist(item: Block) -> None:
    """On the ground of the recipe that is published: a page shows what differs."""
    from training.loading import merge, read_recipe, to_recipe

    values = yaml.safe_load(item.text)
    values = {"sources": values} if isinstance(values, list) else values
    ground = read_recipe(REPOSITORY / "training/recipes/finetune.yaml")
    to_recipe(merge(ground, {key: value for key, value in values.items() if key != "extends"}), str(item))


def module_of(words: list[str]) -> list[str]:
    """Return what follows `-m` for a module of ours, also behind a launcher: its name and its words."""
    if words[0] == "tinyrm":
        return words
    while "-m" in words:
        words = words[words.index("-m") + 1 :]
        if words[0].split(".")[0] in OURS:
            return words
    return []


@cache
def help_of(*words: str) -> str:
    """Return the help of a module of ours, or of one of its commands."""
    done = subprocess.run(
        [sys.executable, "-m", *words, "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def our_commands() -> list[Command]:
    return [c for c in commands("tinyrm", "python", "accelerate") if any(module_of(words) for words in c.programs)]


@pytest.mark.slow
@of_all(our_commands())
def test_a_command_has_only_options_that_its_help_lists(item: Command) -> None:
    for words in filter(None, map(module_of, item.programs)):
        named = [word for before, word in pairwise(words) if not before.startswith("-")]
        listed = help_of(words[0], *(word for word in named if re.fullmatch(r"[a-z][a-z-]*", word)))
        options = [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
        assert [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", listed)] == []


@pytest.mark.slow
@of_all(commands("helm", "kubectl", also_not_run=True))
def test_a_command_for_a_cluster_has_only_options_that_exist(item: Command) -> None:
    for words in item.programs:
        if words[0] in ("helm", "kubectl"):
            leading = [word for before, word in pairwise(words) if not before.startswith("-")]
            named = [word for word in leading if re.fullmatch(r"[a-z][a-z-]*", word)]
            call = [program(words[0]), *(named if words[0] == "kubectl" else named[:1])]
            shown = [subprocess.run([*call, "--help"], capture_output=True, text=True, check=True).stdout]
            shown += [subprocess.run([call[0], "options"], capture_output=True, text=True, check=False).stdout]
            options = [word.split("=")[0] for word in words if word.startswith("--")]
            assert [each for each in options if not re.search(rf"{each}\b", "".join(shown))] == []


@pytest.fixture(scope="module")
def service() -> Iterator[Process]:
    """The starter with every dialect."""
    with started(STARTER, dialects="openrlhf,slime,verl,nemo-gym,vllm,sglang,llamafactory,rerank") as running:
        yield running


def here(text: str, service: Process) -> str:
    return re.sub(r"(127\.0\.0\.1|localhost):8000", rf"\1:{service.port}", text)


def talks(page: str) -> list[Block]:
    """Return the blocks of a page that send something to a service, or show what it replies."""
    return [
        block
        for block in all_blocks()
        if block.page == page
        and block.is_run
        and (block.note.startswith(("POST ", "reply")) or any(c.text.startswith("curl") for c in commands_of(block)))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages() if talks(page)])
def test_what_a_page_sends_gets_the_reply_that_it_shows(page: str, service: Process) -> None:
    reply: Any = None
    for block in talks(page):
        if block.note.startswith("POST "):
            answered = service.post(block.note.split()[1], json.loads(block.text))
            assert answered.status_code == 200, f"{block}: {answered.text}"
            reply = answered.json()
        elif block.note == "reply":
            assert_alike(json.loads(block.text), reply, str(block))
        else:
            for command in [c for c in commands_of(block) if c.text.startswith("curl")]:
                words = shlex.split(here(command.text, service))
                done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
                reply = json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout
                assert "error" not in reply, f"{block}: {reply}"


def assert_alike(shown: Any, got: Any, where: str) -> None:
    """The keys and the kinds are the same, numbers nearly; `...` ends a text that is different each time."""
    if isinstance(shown, dict):
        assert list(shown) == list(got), where
        for key in set(shown) - {"created"}:
            assert_alike(shown[key], got[key], f"{where} {key}")
    elif isinstance(shown, list):
        assert len(shown) == len(got), where
        for each, other in zip(shown, got, strict=True):
            assert_alike(each, other, where)
    elif isinstance(shown, str):
        assert got == shown or (shown.endswith("...") and got[:5] == shown[:5]), where
    else:
        assert got == (pytest.approx(shown, abs=0.02) if isinstance(shown, float) else shown), where


def lines_for_a_service() -> list[Command]:
    """Return the commands that call a service; those of README.md are in test_readme.py."""
    calls = [c for c in commands("tinyrm") if {"compare", "rank", "score", "models"} & set(c.text.split())]
    return [c for c in calls if "--bundle" not in c.text and c.block.page != "README.md" and c.block.language == "bash"]


@pytest.mark.slow
@of_all(lines_for_a_service())
def test_a_command_that_calls_a_service_runs(item: Command, service: Process, tmp_path: Path) -> None:
    line = '{"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."}\n'
    (tmp_path / "pairs.jsonl").write_text(line)
    subprocess.run(["gzip", "--keep", "pairs.jsonl"], cwd=tmp_path, check=True)
    program = tmp_path / "tinyrm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tinyrm "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "TINYRM_URL": f"http://127.0.0.1:{service.port}",
    }
    if "jq" in item.text and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    text = here(re.sub(r"\.venv/\w+/bin/", "", item.text), service)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@of_all([block for block in blocks("python") if block.is_run and block.page != "README.md"])
def test_a_python_block_runs(item: Block, service: Process, tmp_path: Path) -> None:
    program = tmp_path / "block.py"
    program.write_text(GIVEN + here(item.text, service))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, program],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# What mypy is to know of: ours. Packages of others may be anything, and take minutes.
MYPY = """[mypy]
follow_imports = skip
ignore_missing_imports = True
check_untyped_defs = True
disable_error_code = name-defined
[mypy-tinyrm.*]
follow_imports = silent
"""


@pytest.mark.slow
def test_python_blocks_call_what_exists_with_arguments_of_the_right_types(tmp_path: Path) -> None:
    """Names that are the reader's may be anything."""
    (tmp_path / "mypy.ini").write_text(MYPY)
    names = {}
    for number, block in enumerate(blocks("python")):
        names[f"block_{number}.py"] = block
        (tmp_path / f"block_{number}.py").write_text(block.text)
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(tmp_path / "mypy.ini"),
        *map(str, tmp_path.glob("*.py")),
    ]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, re.sub(r"\S*(block_\d+\.py)", lambda match: str(names[match[1]]), done.stdout)
