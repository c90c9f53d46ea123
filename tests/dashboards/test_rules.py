"""Recording rules and alerts, evaluated by promtool on synthetic series."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.dashboards.test_dashboards import RECORDED, exposed, names
from tests.support.prometheus import RULES, tool
from tools.dashboards.bounds import DOCS_URL

TESTS = RULES.with_name("rules_test.yml")
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text()


def rules(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


ALERTS = [rule for rule in rules(RULES.read_text()) if "alert" in rule]
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=[rule["alert"] for rule in ALERTS])


def promtool(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([tool("promtool"), *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_rules_pass_their_own_tests() -> None:
    for words in (("check", "rules", RULES.name), ("test", "rules", TESTS.name)):
        done = promtool(RULES.parent, *words)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@each_alert
def test_an_alert_has_a_test_that_fails_without_it(alert: dict[str, Any], tmp_path: Path) -> None:
    own = yaml.safe_load(TESTS.read_text())
    own["tests"] = [test for test in own["tests"] if alert["alert"] in str(test["promql_expr_test"])]
    (tmp_path / TESTS.name).write_text(yaml.safe_dump(own))
    without = yaml.safe_load(RULES.read_text())
    for group in without["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert") != alert["alert"]]
    (tmp_path / RULES.name).write_text(yaml.safe_dump(without))
    done = promtool(tmp_path, "test", "rules", TESTS.name)
    assert done.returncode == 1
    assert f'exp: {{alertname="{alert["alert"]}"}}' in done.stdout + done.stderr


@each_alert
def test_an_alert_has_a_section_that_describes_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["annotations"]["runbook_url"] == f"{DOCS_URL}/operations/#{alert['alert'].lower()}"
    section = re.search(rf"^### {alert['alert']}\n\n(.+?)\n(?:\n#|\Z)", OPERATIONS, flags=re.MULTILINE | re.DOTALL)
    assert section
    steps = re.findall(r"^\* \*\*(\w+)\*\*: (?:.+\n?)+?(?=\* \*\*|\Z)", section.group(1) + "\n", flags=re.MULTILINE)
    assert steps == ["Meaning", "Impact", "Check", "Mend"]
    assert len(section.group(1).split()) >= 40
    assert alert["labels"]["severity"] in ("warning", "critical")


def test_the_rules_name_metrics_that_exist_and_what_is_recorded() -> None:
    recorded = {rule["record"] for rule in rules(RULES.read_text()) if "record" in rule}
    for rule in rules(RULES.read_text()):
        used = set(RECORDED.findall(rule["expr"]))
        assert used <= recorded
        assert names(rule["expr"]) <= exposed()
        assert used or names(rule["expr"]) or "up{" in rule["expr"]
