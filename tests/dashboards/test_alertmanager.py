"""The configuration of Alertmanager, checked by its own tool."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.dashboards.test_rules import ALERTS
from tests.support.alertmanager import CONFIGURATION, uncommented
from tests.support.prometheus import tool


def amtool(*words: str | Path) -> str:
    done = subprocess.run([tool("amtool"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nobody_is_notified_by_default() -> None:
    amtool("check-config", CONFIGURATION)
    assert yaml.safe_load(CONFIGURATION.read_text())["receivers"] == [{"name": "call"}, {"name": "ticket"}]


@pytest.mark.parametrize(
    ("kind", "receiver", "secret"),
    [
        ("slack", "call", "api_url_file"),
        ("webhook", "call", "credentials_file"),
        ("email", "ticket", "auth_password_file"),
    ],
)
def test_each_example_of_a_receiver_is_valid_and_has_its_secret_from_the_file(
    kind: str, receiver: str, secret: str, tmp_path: Path
) -> None:
    (tmp_path / "alertmanager.yml").write_text(uncommented(kind))
    amtool("check-config", tmp_path / "alertmanager.yml")
    found = {one["name"]: one for one in yaml.safe_load(uncommented(kind))["receivers"]}
    assert f"{kind}_configs" in found[receiver]
    assert re.search(rf"{secret}['\"]?: ['\"]?/run/secrets/alert_secret", str(found[receiver]))


def test_every_alert_has_a_severity_that_is_routed() -> None:
    for severity, receiver in {"critical": "call", "warning": "ticket"}.items():
        routed = amtool("config", "routes", "test", f"--config.file={CONFIGURATION}", f"severity={severity}")
        assert routed.strip() == receiver
    assert {alert["labels"]["severity"] for alert in ALERTS} == {"critical", "warning"}


def test_inhibition_names_alerts_that_exist() -> None:
    names = {alert["alert"] for alert in ALERTS}
    for rule in yaml.safe_load(CONFIGURATION.read_text())["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            sign, pattern = re.fullmatch(r'alertname(=~|!=|=)"(.+)"', matcher).groups()  # type: ignore[union-attr]
            assert any(re.fullmatch(part, name) for part in pattern.split("|") for name in names), (sign, pattern)
