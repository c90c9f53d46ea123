"""The manifests of deploy/kubernetes as objects."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from service.metrics import Metrics
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "kubernetes"
KEYS = FOLDER / "api-keys"

Manifest = dict[str, Any]


def read(path: Path) -> Manifest:
    """Return the one object of a file."""
    (document,) = yaml.safe_load_all(path.read_text())
    assert isinstance(document, dict)
    return document


def applied() -> dict[str, Manifest]:
    """Return by kind what the kustomization applies. There is one of each."""
    resources = [read(FOLDER / name) for name in read(FOLDER / "kustomization.yaml")["resources"]]
    by_kind = {resource["kind"]: resource for resource in resources}
    assert len(by_kind) == len(resources)
    return by_kind


def container_of(deployment: Manifest) -> Manifest:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def environment_of(container: Manifest) -> dict[str, str]:
    """Return the variables as the process sees them, with values of its own resources filled in."""
    return {one["name"]: one["value"] if "value" in one else _filled(one, container) for one in container["env"]}


def _filled(variable: Manifest, container: Manifest) -> str:
    source = variable["valueFrom"]["resourceFieldRef"]
    group, resource = source["resource"].split(".")
    return str(int(container["resources"][group][resource]) // int(source["divisor"]))


@dataclass(frozen=True)
class AdapterRule:
    """A metric that the Prometheus adapter derives from a series."""

    metric: str
    series: str
    query: str

    def expression(self, selector: str) -> str:
        """Return PromQL for pods, as the adapter fills it in.

        selector: such as namespace="x",pod=~"y".
        """
        filled = {"<<.Series>>": self.series, "<<.LabelMatchers>>": selector, "<<.GroupBy>>": "pod"}
        text = self.query
        for placeholder, value in filled.items():
            text = text.replace(placeholder, value)
        return text


def adapter_rules() -> Iterator[AdapterRule]:
    for rule in read(FOLDER / "prometheus-adapter-values.yaml")["rules"]["custom"]:
        series = rule["seriesQuery"].split("{")[0]
        assert rule["name"]["matches"] == f"^{series}$"
        yield AdapterRule(rule["name"]["as"], series, rule["metricsQuery"])


def exposed() -> set[str]:
    """Return the names of the series that a service has from its start."""
    lines = Metrics().expose().decode().splitlines()
    return {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
