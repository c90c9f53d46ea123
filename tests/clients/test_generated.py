"""Test a client that another project's generator makes from the served OpenAPI document."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import client_packages, run_client
from tests.support.processes import PATIENCE_S, STARTER, Process, started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pairs(bundle_folder: Path) -> Iterator[Process]:
    with started(bundle_folder) as one:
        yield one


@pytest.fixture(scope="module")
def generated(pairs: Process, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package `tinyrm_api`, made from the document of a service that reads pairs."""
    generator = client_packages(pytestconfig, "openapi-python-client==0.29.1", "typer==0.27.0")
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(pairs.get("/openapi.json").json()))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"]
    command += ["--path", str(folder / "openapi.json"), "--output-path", str(folder / "tinyrm_api")]
    # It formats what it writes with ruff, which is beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(generator), "PATH": path}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


def call(generated: Path, service: Process, domain: str) -> dict[str, Any]:
    replies: dict[str, Any] = run_client("generated_client.py", generated, f"http://127.0.0.1:{service.port}", domain)
    return replies


def test_every_operation_works(generated: Path, pairs: Process) -> None:
    replies = call(generated, pairs, "safety")
    assert replies["compare"]["orders"]["b_first"] is not None
    assert replies["error"]["error"]["type"] == "unknown_domain"
    good, bad = replies["batch"]["results"]
    assert (good["model"], bad["error"]["type"]) == (replies["compare"]["model"], "unknown_domain")
    assert sorted(replies["rank"]["order"]) == [0, 1]
    assert sum(replies["rewards"]["rewards"]) == pytest.approx(0)
    assert replies["score"]["error"]["type"] == "not_pointwise"
    assert replies["tokens"]["prompt"] == replies["tokens"]["responses"][2] == 0
    assert replies["models"]["models"][0]["name"] == replies["model"]["id"] == "toy"
    assert replies["unknown"]["error"]["type"] == "unknown_model"
    assert replies["health"] == {"status": "ready"}


def test_it_works_with_another_model_and_other_domains_than_it_was_made_for(generated: Path) -> None:
    with started(STARTER) as service:
        replies = call(generated, service, "chat")
        body = {"prompt": "What is 2 + 2?", "responses": ["It is 4.", "I do not know."]}
        expected = service.post("/v1/score", body).json()["results"]
    assert replies["compare"]["model"].startswith("starter@")
    assert replies["compare"]["orders"] is None
    raw, expected_raw = ([one["raw"] for one in results] for results in (replies["score"]["results"], expected))
    assert raw == pytest.approx(expected_raw, abs=1e-3)
    assert replies["models"]["models"][0]["demo"] is True
    assert replies["models"]["models"][0]["accuracy"]["pairs"] == 2216
