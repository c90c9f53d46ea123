"""Folders that take seconds to make, kept in pytest's cache until a source that they depend on changes."""

import hashlib
import shutil
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import FunctionType

import pytest

from tinyrm.files import locked

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("export", "tinyrm", "training", "tests/conftest.py", "tests/support/checkpoints.py")
LIBRARIES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "peft",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
MAX_STATES = 4  # of the sources; a folder takes a few megabytes


def kept(config: pytest.Config, name: str, make: FunctionType) -> Path:
    """Return the folder `name`, which `make` fills unless an earlier run or another test process has done so.

    It is filled again when a source changes, or the file that defines `make`. Tests must not write into it. A machine
    without a cache, as in CI, makes everything anew.
    """
    name = f"{name}-{hashlib.sha256(Path(make.__code__.co_filename).read_bytes()).hexdigest()[:8]}"
    assert config.cache is not None
    states = config.cache.mkdir("toys")
    state = states / state_of_sources()
    state.mkdir(exist_ok=True)
    folder, done = state / name, state / f"{name}.done"
    with locked(state / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    for old in sorted(states.iterdir(), key=lambda path: path.stat().st_mtime)[:-MAX_STATES]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


@cache
def state_of_sources() -> str:
    digest = hashlib.sha256()
    for source in SOURCES:
        path = REPOSITORY / source
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(str(file.relative_to(REPOSITORY)).encode() + b"\0" + file.read_bytes() + b"\0")
    for library in LIBRARIES:
        digest.update(f"{library}=={version(library)}\0".encode())
    return digest.hexdigest()[:16]
