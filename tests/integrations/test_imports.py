"""Test that no integration imports its trainer."""

import subprocess
import sys

from tests.conftest import REPOSITORY

MODULES = sorted(file.stem for file in (REPOSITORY / "tinyrm" / "integrations").glob("*.py"))


def test_importing_all_of_them_loads_no_trainer() -> None:
    heavy = ("torch", "transformers", "trl", "verl", "rewardbench", "datasets", "pandas")
    code = (
        f"import importlib, sys\nfor name in {MODULES}: importlib.import_module('tinyrm.integrations.' + name)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
