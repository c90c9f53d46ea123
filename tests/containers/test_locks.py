"""The locks satisfy pyproject.toml, and every package has its hash."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY

LOCKS = REPOSITORY / "deploy" / "locks"
# The extras of each lock, as in the Makefile.
EXTRAS = {
    "serve": ("serve", "otel"),
    "openvino": ("serve", "otel", "openvino"),
    "gpu": ("gpu", "otel"),
    "export": ("export",),
    "load": ("serve", "load"),
}


def pinned(path: Path) -> dict[str, Requirement]:
    """Return name -> requirement of what the image installs. Fails if one has no hash."""
    # Ubuntu has a later Python.
    python = "3.12" if path.stem == "gpu" else "3.11"
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    text = re.sub(r"\\\n\s*", "", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found = {}
    for line in lines:
        assert re.search(r" --hash=sha256:[0-9a-f]{64}", line), line
        requirement = Requirement(line.split(" --hash=")[0])
        if requirement.marker is None or requirement.marker.evaluate(here):
            found[canonicalize_name(requirement.name)] = requirement
    return found


def required(extras: tuple[str, ...]) -> list[Requirement]:
    """Return the dependencies with those of the extras, and of the extras that these build on."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts, found = [*project["dependencies"], f"tinyrm[{','.join(extras)}]"], []
    while texts:
        requirement = Requirement(texts.pop())
        if requirement.name == "tinyrm":
            texts += chain.from_iterable(project["optional-dependencies"][extra] for extra in requirement.extras)
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_holds_what_is_required(name: str) -> None:
    locked = pinned(LOCKS / f"{name}.txt")
    if name == "export":
        locked |= pinned(LOCKS / "torch-cpu.txt")
    for requirement in required(EXTRAS[name]):
        (pin,) = locked[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), (
            f"{name}.txt has {pin}, pyproject.toml requires {requirement}"
        )


@pytest.mark.parametrize("name", ["serve", "openvino", "gpu", "load"])
def test_a_lock_for_serving_has_no_torch(name: str) -> None:
    assert not {"torch", "transformers"} & pinned(LOCKS / f"{name}.txt").keys()


def test_the_gpu_lock_has_one_build_of_onnx_runtime() -> None:
    assert {n for n in pinned(LOCKS / "gpu.txt") if n.startswith("onnxruntime")} == {"onnxruntime-gpu"}
