"""helm and kubectl, and what they render."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.deploy.manifests import Manifest, container_of

INSTALLED = REPOSITORY / ".venv" / "kubernetes"
CHART = REPOSITORY / "deploy" / "helm" / "tinyrm"


def program(name: str) -> str:
    """Return the path of `helm` or `kubectl`. Skips the test if this machine has none."""
    path = shutil.which(INSTALLED / name) or shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} on this machine; `.ci/kubernetes.sh` installs it")
    return path


def helm(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([program("helm"), *words], capture_output=True, text=True, check=False, timeout=60)


def kustomize(folder: Path) -> list[Manifest]:
    """Return what `kubectl apply -k` would send."""
    done = subprocess.run(
        [program("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


@cache
def _template(text: str, release: str, *options: str) -> str:
    done = subprocess.run(
        [program("helm"), "template", release, CHART, "--namespace", "reward", "--values", "-", *options],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Rendered(dict[tuple[str, str], Manifest]):
    """Objects by kind and name."""

    def one(self, kind: str, name: str | None = None) -> Manifest:
        (found,) = [each for (its, named), each in self.items() if its == kind and name in (None, named)]
        return found

    def kinds(self) -> set[str]:
        return {kind for kind, _ in self}

    def environment(self, deployment: str = "tinyrm") -> dict[str, Any]:
        """Return the variables of a Deployment's container: their values, or where these come from."""
        variables = container_of(self.one("Deployment", deployment))["env"]
        named = {one["name"]: one.get("value", one.get("valueFrom")) for one in variables}
        assert len(named) == len(variables), "a variable is there twice"
        return named


def rendered(values: Manifest | None = None, *options: str, release: str = "tinyrm") -> Rendered:
    """Return the objects that the chart makes of values."""
    text = _template(yaml.safe_dump(values or {}), release, *options)
    # The C parser: dashboards are thousands of lines.
    objects = [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]
    by_name = Rendered({(one["kind"], one["metadata"]["name"]): one for one in objects})
    assert len(by_name) == len(objects), "two objects have one name"
    return by_name


def refusal(values: Manifest) -> str:
    """Return what helm prints about values that the chart refuses."""
    with pytest.raises(AssertionError) as caught:
        _template(yaml.safe_dump(values), "tinyrm")
    return str(caught.value)
