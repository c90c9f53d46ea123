"""Test that the stored description of the API is that of the code."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tools.api_reference import documents, main


@pytest.mark.parametrize("name", ["openapi.json", "api.md"])
def test_stored_description_is_current(name: str) -> None:
    stored = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert stored == documents()[name], "run `python -m tools.api_reference docs`"


def test_every_operation_has_a_chapter_and_its_errors() -> None:
    page = documents()["api.md"]
    routes = ("/v1/compare", "/v1/compare/batch", "/v1/rank", "/v1/rewards", "/v1/score")
    for operation in (*(f"POST {route}" for route in routes), "GET /readyz"):
        assert f"## {operation}\n" in page
    assert "| 429 | Too much is waiting; see Retry-After. |" in page


def test_a_command_writes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.api_reference"]
    subprocess.run([*command, str(tmp_path)], cwd=REPOSITORY, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"openapi.json", "api.md"}


def test_a_folder_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere"]) == 2
    assert capsys.readouterr().err == "nowhere is not a folder\n"
