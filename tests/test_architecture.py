"""Check the rules of the code on the code."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("tinyrm", "service", "training", "export", "evaluation", "tools")
# What serving does without: package -> what of the core needs it.
ABSENT = {
    "torch": {
        "engines.torch_checkpoint",
        "engines.torch_gpu",
        *(f"families.{name}" for name in ("bert", "graphs", "modular", "pairrm", "plain")),
        *(
            f"modernbert.{name}"
            for name in ("blocked", "checkpoint", "heads", "model", "packed", "set_attention", "sets", "weights")
        ),
    },
    "peft": {"modernbert.adapter"},
    "matplotlib": {"pictures"},
    "scipy": {"calibration"},
    "openvino": {"engines.openvino_cpu"},
    "pyarrow": {"bulk.bundle", "bulk.job", "bulk.parquet", "bulk.sources"},
    "ray": {"bulk.ray_runner"},
}


def shipped_files() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((REPOSITORY / package).rglob("*.py"))]


def test_serving_loads_no_torch() -> None:
    code = "import sys, service.app; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_serving_environment_has_no_torch_and_imports_everything_it_serves() -> None:
    python = REPOSITORY / ".venv" / "serve" / "bin" / "python"
    if not python.exists():
        pytest.skip("no serving environment; `make test` makes it")
    folders = (REPOSITORY / "service", REPOSITORY / "tinyrm")
    modules = [module_name(file) for file in shipped_files() if set(folders) & set(file.parents)]
    code = f"""
import importlib, json
missing = {{}}
for name in {modules}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing.setdefault(error.name, []).append(name)
print(json.dumps(missing))
"""
    done = subprocess.run([python, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    missing = {
        package: {name.removeprefix("tinyrm.") for name in names} for package, names in json.loads(done.stdout).items()
    }
    assert missing == ABSENT, done.stderr


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-logo"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_our_generic_names_are_ours(package: str) -> None:
    """Notice a dependency that ships a package of the same name."""
    assert REPOSITORY in Path(str(importlib.import_module(package).__file__)).parents
