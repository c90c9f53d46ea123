"""The dashboards are what Grafana's own types say, as its npm package has them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft7Validator

from tests.support.prometheus import dashboards

pytestmark = pytest.mark.slow

PACKAGES = ("@grafana/schema@13.2.3", "ts-json-schema-generator@2.9.0")
TYPES = "./node_modules/@grafana/schema/dist/types/raw"
# A dashboard's own type leaves the options of its panels open.
ROOTS = {"dashboard": ("dashboard/x", "Dashboard")} | {
    kind: (f"composable/{kind}/panelcfg/x", "Options") for kind in ("timeseries", "stat", "heatmap")
}

Validators = dict[str, Draft7Validator]


@pytest.fixture(scope="module")
def validators(tmp_path_factory: pytest.TempPathFactory) -> Validators:
    """Of a whole dashboard, and of the options of each kind of panel."""
    folder = tmp_path_factory.mktemp("schema")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine, so Grafana's types are not to be had")
    (folder / "package.json").write_text("{}")
    options = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0"]
    done = subprocess.run(
        [npm, "install", *options, *PACKAGES], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"npm did not get {PACKAGES}: {done.stderr.strip().splitlines()[0]}")
    return {kind: Draft7Validator(schema(folder, kind)) for kind in ROOTS}


def schema(folder: Path, kind: str) -> Any:
    path, name = ROOTS[kind]
    root = f"import type {{ {name} }} from '{TYPES}/{path}/types.gen'; export type Root = {name};"
    (folder / f"{kind}.ts").write_text(root)
    generator = folder / "node_modules" / ".bin" / "ts-json-schema-generator"
    command = [generator, "--path", f"{kind}.ts", "--type", "Root", "--no-type-check"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def errors(validator: Draft7Validator, document: Any) -> list[str]:
    return [f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(document)]


@pytest.mark.parametrize("name", dashboards())
def test_dashboards_are_of_grafanas_type(name: str, validators: Validators) -> None:
    dashboard = dashboards()[name]
    assert errors(validators["dashboard"], dashboard) == []
    for panel in dashboard["panels"]:
        assert errors(validators[panel["type"]], panel["options"]) == [], panel["title"]


@pytest.mark.parametrize("change", [{"title": 7}, {"unknown": True}, {"graphTooltip": 9}, {"panels": [{"type": 1}]}])
def test_what_grafana_does_not_know_is_refused(change: dict[str, Any], validators: Validators) -> None:
    assert errors(validators["dashboard"], dashboards()["latency"] | change)


def test_options_of_another_kind_of_panel_are_refused(validators: Validators) -> None:
    (stat, *_) = (panel for panel in dashboards()["latency"]["panels"] if panel["type"] == "stat")
    assert errors(validators["stat"], stat["options"]) == []
    assert errors(validators["heatmap"], stat["options"])
