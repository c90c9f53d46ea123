"""Test that Dockerfile and compose files follow the rules of their tools, and agree with the service's settings."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.conftest import REPOSITORY
from tests.containers.engine import STANDINS
from tests.containers.test_locks import LOCKS

COMPOSE_FILES = ("docker-compose.yml", "deploy/compose/keys.yml")
BIN = Path(sys.executable).parent


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text()))


def test_hadolint_finds_nothing() -> None:
    done = run(BIN / "hadolint", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_nothing_in_the_stand_ins() -> None:
    # They install Debian's current packages on a base without a version.
    done = run(BIN / "hadolint", "--ignore", "DL3008", "--ignore", "DL3006", *STANDINS.glob("*/Dockerfile"))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_compose_files_follow_the_specification(file: str) -> None:
    done = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)
    assert done.returncode == 0, done.stdout


def test_the_container_gets_every_setting_but_those_that_the_files_set() -> None:
    by_the_files = {"host", "port", "api_keys_file"}
    passed = {PREFIX + name.upper() for name in set(Settings.model_fields) - by_the_files}
    for name in ("tinyrm", "tinyrm-gpu"):
        environment = compose()["services"][name]["environment"]
        assert {variable for variable in environment if variable.startswith(PREFIX)} == passed
        fixed = {variable for variable, value in environment.items() if value and "${" not in value}
        assert fixed == {"TINYRM_CACHE", "HF_TOKEN_PATH"}


def test_fetched_bundles_are_kept_in_a_volume() -> None:
    services, dockerfile = compose()["services"], (REPOSITORY / "Dockerfile").read_text()
    for name, volume in {"tinyrm": "bundles:/cache", "tinyrm-gpu": "engines:/cache"}.items():
        assert volume in services[name]["volumes"]
        assert services[name]["environment"]["TINYRM_CACHE"] == "/cache"
    assert set(compose()["volumes"]) >= {"bundles", "engines"}
    assert dockerfile.count("RUN install --directory --mode 1777 /cache") == 3


def test_every_lock_can_be_chosen_for_the_service() -> None:
    build = compose()["services"]["tinyrm"]["build"]
    assert build["args"] == {"LOCK": "${LOCK:-serve}"}
    assert {lock.stem for lock in LOCKS.iterdir()} >= {"serve", "openvino"}


def test_the_home_of_grafana_is_a_dashboard() -> None:
    grafana = compose()["services"]["grafana"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert "./deploy/grafana/dashboards:/etc/grafana/dashboards:ro" in grafana["volumes"]
    assert (REPOSITORY / "deploy/grafana/dashboards" / Path(home).name).is_file()


def test_every_port_is_bound_to_this_machine_by_default() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 7
    assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in ports)


def test_every_service_is_confined() -> None:
    for name, service in compose()["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        # Compose v2 refuses limits in both places; a GPU can only be reserved here.
        assert "limits" not in service.get("deploy", {}).get("resources", {}), name
        # Grafana unpacks plugins into its own folders.
        assert service.get("read_only") or name == "grafana", name


def test_images_have_versions() -> None:
    images = [s["image"] for s in compose()["services"].values() if not s["image"].startswith("tinyrm")]
    assert len(images) == 3
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images)


def test_bases_are_arguments() -> None:
    """Each FROM is an argument or a stage, so that another registry can be used."""
    sources = re.findall(r"^FROM (\S+)", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE))
    assert {"service", "gpu", "export", "load"} <= stages
    assert set(sources) - stages == {"${PYTHON_IMAGE}", "${CUDA_IMAGE}"}
