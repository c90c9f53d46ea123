"""The stored description of the API is that of the code."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tools.api_reference import documents


@pytest.mark.parametrize("name", ["openapi.json", "api.md"])
def test_stored_description_is_current(name: str) -> None:
    stored = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert stored == documents()[name], "run `python -m tools.api_reference docs`"


def test_every_operation_has_a_chapter_and_its_errors() -> None:
    page = documents()["api.md"]
    for operation in ("POST /v1/compare", "POST /v1/compare/batch", "POST /v1/rank", "POST /v1/rewards", "GET /readyz"):
        assert f"## {operation}\n" in page
    assert "| 429 | Too much is waiting; see Retry-After. |" in page


def test_written_by_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.api_reference"]
    subprocess.run([*command, str(tmp_path)], cwd=REPOSITORY, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"openapi.json", "api.md"}
    wrong = subprocess.run([*command, "nowhere"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (2, "usage: python -m tools.api_reference FOLDER\n")
