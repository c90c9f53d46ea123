"""The dashboards match Grafana's own types, from its npm package."""

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
# The type of a dashboard leaves the options of its panels open.
ROOTS = {"dashboard": ("dashboard/x", "Dashboard")} | {
    kind: (f"composable/{kind}/panelcfg/x", "Options") for kind in ("timeseries", "stat", "heatmap")
}

Validators = dict[str, Draft7Validator]


@pytest.fixture(scope="module")
def validators(tmp_path_factory: pytest.TempPathFactory) -> Validators:
    """Return validators of a dashboard, and of the options of each kind of panel. Skips without npm's registry."""
    folder = tmp_path_factory.mktemp("schema")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm on this machine, which Grafana's types come from")
    # One short request first: without a network an installation would try again for minutes.
    bounds = ["--fetch-retries=0", "--fetch-timeout=20000"]
    ping = subprocess.run([npm, "ping", *bounds], cwd=folder, capture_output=True, text=True, check=False)
    if ping.returncode:
        pytest.skip(f"npm's registry does not answer: {npm_error(ping.stderr)}")
    (folder / "package.json").write_text("{}")
    options = [*bounds, "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"]
    command = [npm, "install", *options, *PACKAGES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        pytest.skip(f"npm could not install {', '.join(PACKAGES)}: {npm_error(done.stderr)}")
    return {kind: Draft7Validator(schema(folder, kind)) for kind in ROOTS}


def npm_error(stderr: str) -> str:
    """Return the cause: npm's last lines only name its log."""
    lines = [line for line in stderr.splitlines() if "error" in line and "complete log" not in line]
    return "; ".join(lines[:2]) or "no reason given"


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
def test_a_dashboard_matches_grafanas_types(name: str, validators: Validators) -> None:
    dashboard = dashboards()[name]
    assert errors(validators["dashboard"], dashboard) == []
    for panel in dashboard["panels"]:
        assert errors(validators[panel["type"]], panel["options"]) == [], panel["title"]
