"""Test the wheel outside the checkout: it serves, it scores, and it has no common top-level names."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement

from loadtests.service_process import free_port
from tests.conftest import REPOSITORY
from tests.support.processes import PATIENCE_S

pytestmark = pytest.mark.slow

SOURCES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
FOLDERS = ("evaluation", "export", "models/starter", "service", "tinyrm", "training")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
README_REQUEST: dict[str, str] = json.loads(re.findall(r"/v1/compare -d '(.*?)'", README, re.DOTALL)[0])
README_REPLY: dict[str, Any] = json.loads(re.findall(r"```json\n(.*?)```", README, re.DOTALL)[0])


@dataclass(frozen=True)
class Installed:
    """wheel: the file. environment: a virtual environment with the wheel. elsewhere: a folder outside the checkout."""

    wheel: Path
    environment: Path
    elsewhere: Path

    def command(self, name: str) -> str:
        return str(self.environment / "bin" / name)

    def run(self, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.command(name), *words],
            cwd=self.elsewhere,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )


def clean_environment(**extra: str) -> dict[str, str]:
    """Return the environment of a user, in which nothing points at the checkout."""
    kept = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("TINYRM_")
    }
    return kept | extra


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build as pip does, from a copy of the sources, and install without dependencies.

    The packages that the `serve` extra brings are lent by the serving environment, which has the same ones; a path in
    a .pth file of a folder that was itself added by one is not read, so its editable TinyRM stays out of sight.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source, environment, elsewhere = folder / "source", folder / "environment", folder / "elsewhere"
    elsewhere.mkdir()
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    serving = REPOSITORY / ".venv" / "serve" / "bin" / "python"
    python = str(serving) if serving.exists() else sys.executable
    subprocess.run([python, "-m", "venv", "--without-pip", environment], check=True)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    lent = subprocess.run(where, capture_output=True, text=True, check=True).stdout
    site_packages(environment).joinpath("lent.pth").write_text(lent)
    install = ["-m", "pip", "--python", environment, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *install], capture_output=True, check=True)
    return Installed(wheel, environment, elsewhere)


@pytest.fixture(scope="module")
def client(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the wheel beside nothing but its dependencies without any extra, lent by this environment one by one."""
    environment = tmp_path_factory.mktemp("client") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    install = ["-m", "pip", "--python", environment, "install", "--quiet", "--no-deps", "--no-index", installed.wheel]
    subprocess.run([sys.executable, *install], capture_output=True, check=True)
    (metadata,) = site_packages(environment).glob("tinyrm-*.dist-info")
    needed = importlib.metadata.Distribution.at(metadata).requires or []
    lent: set[str] = set()
    while needed:
        requirement = Requirement(needed.pop())
        if requirement.name in lent or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        lent.add(requirement.name)
        distribution = importlib.metadata.distribution(requirement.name)
        needed += distribution.requires or []
        for name in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            target = site_packages(environment) / name
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(name))))
    assert not {"numpy", "tokenizers", "transformers", "onnxruntime"} & lent
    return Installed(installed.wheel, environment, installed.elsewhere)


@pytest.fixture(scope="module")
def oldest_client(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the wheel beside the oldest version that it allows of each of its dependencies."""
    environment = tmp_path_factory.mktemp("oldest") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = [text.split(",")[0].replace(">=", "==") for text in project["dependencies"]]
    done = subprocess.run([*pip, "--only-binary", ":all:", *oldest], capture_output=True, text=True, check=False)
    if done.returncode:
        assert "ResolutionImpossible" not in done.stderr, done.stderr
        pytest.skip(f"no package index, or no build of an old package for this Python: {done.stderr[-300:]}")
    subprocess.run([*pip, "--no-deps", "--no-index", installed.wheel], capture_output=True, check=True)
    return Installed(installed.wheel, environment, installed.elsewhere)


@pytest.fixture(scope="module")
def address(installed: Installed) -> Iterator[str]:
    with serving(installed) as served:
        yield served


def site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))


@contextmanager
def serving(installed: Installed) -> Iterator[str]:
    """Run `tinyrm serve` until it is ready; yield its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    process = subprocess.Popen(
        [installed.command("tinyrm"), "serve"],
        cwd=installed.elsewhere,
        env=clean_environment(TINYRM_PORT=str(port)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not ready(address):
            if process.poll() is not None:
                pytest.fail(process.communicate()[0])
            assert time.monotonic() < deadline, "not ready in time"
            time.sleep(0.05)
        yield address
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.communicate()


def ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_the_wheel_brings_no_other_top_level_name(installed: Installed) -> None:
    brought = {path.name for path in site_packages(installed.environment).iterdir()} - {"lent.pth"}
    assert brought == {"tinyrm", "tinyrm-0.1.0.dist-info"}


def test_the_wheel_holds_types_licence_page_recipes_and_starter(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    starter = REPOSITORY / "models" / "starter"
    assert names >= {
        "tinyrm/py.typed",
        "tinyrm-0.1.0.dist-info/licenses/LICENSE",
        *(f"tinyrm/_apps/service/page/{name}" for name in ("index.html", "app.js", "style.css", "logo.svg")),
        *(f"tinyrm/_apps/models/starter/{file.name}" for file in starter.iterdir()),
        *(
            f"tinyrm/_apps/{file.relative_to(REPOSITORY).as_posix()}"
            for file in (REPOSITORY / "training" / "recipes").rglob("*.yaml")
        ),
    }


def test_tinyrm_serve_answers_the_readme_comparison_with_the_starter(installed: Installed, address: str) -> None:
    reply = httpx.post(f"{address}/v1/compare", json=README_REQUEST, trust_env=False)
    assert reply.status_code == 200, reply.text
    assert reply.json()["preferred"] == README_REPLY["preferred"]
    assert reply.json()["model"].startswith("starter@")
    assert "<html" in httpx.get(address, trust_env=False).text
    *texts, domain = README_REQUEST.values()
    compared = installed.run("tinyrm", "compare", *texts, "--domain", domain, "--url", address, "--json")
    assert json.loads(compared.stdout)["margin"] == pytest.approx(reply.json()["margin"], abs=1e-4), compared.stderr


def test_the_starter_scores_without_a_service(installed: Installed) -> None:
    code = f"import tinyrm; scorer = tinyrm.load('models/starter')\nprint(scorer.compare(**{README_REQUEST}).preferred)"
    done = installed.run("python", "-c", code)
    assert done.stdout == f"{README_REPLY['preferred']}\n", done.stderr


@pytest.mark.parametrize("name", ["client", "oldest_client"])
def test_a_client_needs_no_extra(request: pytest.FixtureRequest, address: str, name: str) -> None:
    """Every integration can be imported, and commands call the service."""
    client: Installed = request.getfixturevalue(name)
    names = [f"tinyrm.integrations.{file.stem}" for file in (REPOSITORY / "tinyrm" / "integrations").glob("[!_]*.py")]
    code = f"import importlib, tinyrm; tinyrm.AsyncClient; [importlib.import_module(name) for name in {names}]"
    done = client.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    ranked = client.run("tinyrm", "rank", "Say hello.", "Hello!", "No.", "--url", address, "--json")
    assert sorted(json.loads(ranked.stdout)["order"]) == [0, 1], ranked.stderr
    assert client.run("tinyrm", "models", "--url", address).returncode == 0
    pairs = client.elsewhere / "pairs.jsonl"
    pairs.write_text(json.dumps(README_REQUEST))
    scored = client.run("tinyrm", "score", str(pairs), "--out", "-", "--url", address)
    assert json.loads(scored.stdout)["tinyrm"]["reply"]["preferred"] == README_REPLY["preferred"], scored.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["bench"], "local"),
        (["score", "pairs.jsonl", "--out", "scored", "--bundle", "models/starter"], "local,bulk"),
        (["evaluate", "--bundle", "models/starter", "--pairs", "pairs.jsonl"], "local,evaluation"),
        (["serve"], "serve"),
        (["keys", "list"], "serve"),
    ],
)
def test_a_command_that_computes_names_the_extra(client: Installed, words: list[str], extra: str) -> None:
    done = client.run("tinyrm", *words)
    assert done.returncode == 2
    assert re.fullmatch(rf"tinyrm: [\w -]+ needs \w+: pip install 'tinyrm\[{extra}\]'\n", done.stderr), done.stderr


def test_a_scorer_without_its_extra_is_one_sentence(client: Installed) -> None:
    code = (
        "import tinyrm\n"
        "try: tinyrm.load('models/starter')\n"
        "except ImportError as error: print(error)\n"
        "try: from tinyrm import Scorer\n"
        "except ImportError as error: print(error)"
    )
    done = client.run("python", "-c", code)
    sentence = "tinyrm.{} computes in this process and needs numpy: pip install 'tinyrm[local]'\n"
    assert done.stdout == sentence.format("load") + sentence.format("Scorer"), done.stderr


def test_the_client_installs_beside_an_old_transformers(installed: Installed) -> None:
    """rewardbench 0.1.4 pins this version, which needs tokenizers before 0.22."""
    words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", *words, "transformers==4.51.0", str(installed.wheel)]
    both = subprocess.run(command, capture_output=True, text=True, check=False)
    if both.returncode:
        assert "ResolutionImpossible" not in both.stderr, both.stderr
        pytest.skip(f"no package index: {both.stderr[-300:]}")
    names = {item["metadata"]["name"] for item in json.loads(both.stdout)["install"]}
    assert {"tinyrm", "httpx", "transformers", "tokenizers"} <= names


@pytest.mark.parametrize(
    ("words", "extra"), [(["train", "starter/pairs"], "train"), (["export", "--model", "x", "--out", "y"], "export")]
)
def test_a_missing_extra_is_one_line_that_names_the_installation(
    installed: Installed, words: list[str], extra: str
) -> None:
    hidden = f"import sys; sys.modules['torch'] = None; from tinyrm.cli import main; sys.exit(main({words}))"
    done = installed.run("python", "-c", hidden)
    assert done.returncode == 2
    assert done.stderr == f"tinyrm: tinyrm {words[0]} needs torch: pip install 'tinyrm[{extra}]'\n"


def test_applications_of_the_checkout_are_found_beside_the_library(installed: Installed) -> None:
    code = "import tinyrm.starter; print(tinyrm.starter.root())"
    there = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert Path(there.stdout.strip()) == REPOSITORY
    here = installed.run("python", "-c", code)
    assert Path(here.stdout.strip()) == site_packages(installed.environment) / "tinyrm" / "_apps"
