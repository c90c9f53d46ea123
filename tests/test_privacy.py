"""Test that nothing is written into the user's home folder, where libraries keep what they report to their makers."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Trained
from tests.support.processes import PATIENCE_S, started

RUNTIMES = ("onnxruntime", "openvino")
# Their __init__.py switches reports off, before their modules import a runtime.
SILENT = ("tinyrm/engines", "export", "evaluation", "training")
# These run in environments of their own, with loadtests/bench/contenders.py's variables.
BENCH = "loadtests/bench/workers"

SCORE = """
import sys
from tinyrm.scorer import Scorer
for engine in sys.argv[2:]:
    print(Scorer.open(sys.argv[1], engine).compare("q", "a", "b"))
"""


def empty_home(folder: Path) -> dict[str, str]:
    """Return an environment with this folder as the home. Without the rest of ours: libraries are silent in CI."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}


def written(folder: Path) -> list[str]:
    home = folder / "home"
    return [str(path.relative_to(home)) for path in sorted(home.rglob("*")) if path.is_file()]


def run(*words: object, folder: Path) -> None:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=empty_home(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr


def test_scoring_writes_nothing_into_the_home_folder(bundle_folder: Path, tmp_path: Path) -> None:
    run("-c", SCORE, bundle_folder, "onnxruntime-cpu", "openvino-cpu", folder=tmp_path)
    assert written(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_serving_writes_nothing_into_the_home_folder(
    bundle_folder: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(os.environ) - {"PATH"}:
        monkeypatch.delenv(name)
    for name, value in empty_home(tmp_path).items():
        monkeypatch.setenv(name, value)
    with started(bundle_folder, workers=workers) as process:
        reply = process.post("/v1/compare", {"prompt": "q", "response_a": "a", "response_b": "b"})
        assert reply.status_code == 200
        assert process.stop() == 0
    assert written(tmp_path) == []


@pytest.mark.slow
def test_bulk_scoring_writes_nothing_into_the_home_folder(bundle_folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "q", "response_a": "a", "response_b": "b"}) + "\n")
    run("-m", "tinyrm", "score", pairs, "--bundle", bundle_folder, "--out", tmp_path / "out", folder=tmp_path)
    assert written(tmp_path) == []


@pytest.mark.slow
def test_evaluation_writes_nothing_into_the_home_folder(bundle_folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(4)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("-m", "evaluation", "--bundle", bundle_folder, "--pairs", pairs, folder=tmp_path)
    assert written(tmp_path) == []


@pytest.mark.slow
def test_export_writes_nothing_into_the_home_folder(trained: Trained, tmp_path: Path) -> None:
    run("-m", "export", "--model", trained.base, "--adapter", trained.adapter, "--out", tmp_path / "m", folder=tmp_path)
    assert written(tmp_path) == []


def files_that_import_a_runtime() -> list[str]:
    found = []
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in tracked.stdout.split():
        for node in ast.walk(ast.parse((REPOSITORY / name).read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(module.split(".")[0] in RUNTIMES for module in modules):
                found.append(name)
                break
    return found


def test_a_runtime_is_imported_only_where_its_reports_are_off() -> None:
    found = files_that_import_a_runtime()
    assert found
    assert [name for name in found if not name.startswith((*SILENT, BENCH))] == []
    code = "import os, sys, {}; print(os.environ['ORT_DISABLE_TELEMETRY'], sys.modules['openvino_telemetry'])"
    for package in SILENT:
        done = subprocess.run(
            [sys.executable, "-c", code.format(package.replace("/", "."))],
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"], "ORT_DISABLE_TELEMETRY": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "1 None\n"


def test_a_cluster_that_a_command_starts_does_not_report(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyrm.bulk import ray_runner

    seen = []
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setattr("ray.init", lambda *_, **__: seen.append(os.environ.get("RAY_USAGE_STATS_ENABLED")))
    ray_runner._connect(ray_runner.LOCAL)
    assert seen == ["0"]


@pytest.mark.parametrize("file", ["Dockerfile", "deploy/ray/Dockerfile"])
def test_images_with_a_runtime_switch_reports_off(file: str) -> None:
    stages = (REPOSITORY / file).read_text().split("\nFROM ")
    final = [stage for stage in stages if "COPY" in stage and "tinyrm tinyrm" in stage and "ENV" in stage]
    assert final
    for stage in final:
        assert ("ORT_DISABLE_TELEMETRY=1" in stage) != ("locust" in stage), stage
