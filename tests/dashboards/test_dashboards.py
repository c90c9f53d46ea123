"""The committed dashboards are the generated ones, query metrics that exist, and explain every panel."""

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.metrics import Metrics
from tests.conftest import REPOSITORY
from tests.support.prometheus import DASHBOARDS, RULES, dashboards, panel_queries
from tools.dashboards import bounds
from tools.dashboards.__main__ import files, main

GRAFANA = REPOSITORY / "deploy" / "grafana"
PROVISIONING = GRAFANA / "provisioning"
PANELS = [(name, panel) for name, dashboard in dashboards().items() for panel in dashboard["panels"]]
# Series that Prometheus itself adds for a target.
OWN_SERIES = {"up", "scrape_duration_seconds", "scrape_samples_scraped"}


def provisioned(kind: str) -> Any:
    (file,) = (PROVISIONING / kind).glob("*.yml")
    return yaml.safe_load(file.read_text())


def names(expression: str) -> set[str]:
    """Return the names of the metrics in a query."""
    without_labels = re.sub(r"\{[^}]*\}", "{}", re.sub(r"\b(?:by|on) \([^)]*\)", "", expression))
    return set(re.findall(r"\b(?:tinyrm|scrape)_\w+", without_labels))


def exposed() -> set[str]:
    lines = Metrics(["openrlhf"]).expose().decode().splitlines()
    declared = {line.split()[2] for line in lines if line.startswith("# HELP")}
    return declared | {re.split("[{ ]", line)[0] for line in lines if not line.startswith("#")} | OWN_SERIES


def test_committed_dashboards_are_those_of_the_code(tmp_path: Path) -> None:
    committed = {file.name: file.read_text() for file in DASHBOARDS.iterdir()}
    assert committed == files(), "run `python -m tools.dashboards`"
    assert main([str(tmp_path)]) == 0
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == committed


def test_the_five_dashboards_are_there() -> None:
    assert set(dashboards()) == {"latency", "cost", "load", "judgement", "process"}
    uids = [dashboard["uid"] for dashboard in dashboards().values()]
    assert len(set(uids)) == 5


def test_every_query_names_metrics_that_exist_and_the_chosen_instances() -> None:
    known = exposed()
    for query in panel_queries():
        expression = query.target["expr"]
        assert names(expression) <= known, query
        for selector in re.findall(r"tinyrm_\w+(\{[^}]*\})?", expression):
            assert 'instance=~"$instance"' in selector, query


def test_every_metric_is_shown_somewhere() -> None:
    shown = set().union(*(names(query.target["expr"]) for query in panel_queries()))
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in exposed() | shown if name.startswith("tinyrm_")}
    assert families - {re.sub("_(bucket|count|sum)$", "", name) for name in shown} == set()


@pytest.mark.parametrize("name", dashboards())
def test_every_panel_has_title_description_unit_and_legends(name: str) -> None:
    for panel in dashboards()[name]["panels"]:
        title = panel["title"]
        assert title
        assert len(panel["description"].split()) >= 3, title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["targets"], title
        assert all(target["legendFormat"] for target in panel["targets"]), title


@pytest.mark.parametrize("name", dashboards())
def test_the_queries_of_every_panel_have_different_names(name: str) -> None:
    for panel in dashboards()[name]["panels"]:
        references = [target["refId"] for target in panel["targets"]]
        assert all(references), panel["title"]
        assert len(set(references)) == len(references), panel["title"]


@pytest.mark.parametrize("name", dashboards())
def test_panels_do_not_overlap(name: str) -> None:
    panels = dashboards()[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_panels_use_the_provisioned_data_source() -> None:
    (source,) = provisioned("datasources")["datasources"]
    assert source["type"] == "prometheus"
    assert {panel["datasource"]["uid"] for _, panel in PANELS} == {source["uid"]}
    variables = [v for dashboard in dashboards().values() for v in dashboard["templating"]["list"]]
    assert {variable["datasource"]["uid"] for variable in variables} == {source["uid"]}


def test_grafana_reads_dashboards_from_their_mount() -> None:
    (provider,) = provisioned("dashboards")["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/etc/grafana/dashboards")


def test_the_bounds_of_panels_are_those_of_alerts() -> None:
    rules = {
        rule["alert"]: rule["expr"]
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    for alert, bound in {
        "TinyRMLatencyHigh": bounds.TOLERATED_S,
        "TinyRMShedding": bounds.SHED_SHARE,
        "TinyRMRequestsFail": bounds.FAILED_SHARE,
        "TinyRMPositionBias": bounds.FIRST_POSITION,
        "TinyRMPositionBiasDrift": bounds.FIRST_POSITION_MOVE,
        "TinyRMTruncation": bounds.TRUNCATED_SHARE,
        "TinyRMEventLoopLate": bounds.LOOP_LAG_S,
        "TinyRMMemoryGrowth": bounds.MEMORY_GROWTH_BYTES_PER_HOUR,
    }.items():
        found = [float(number) for number in re.findall(r"> ([0-9.e]+)", rules[alert])]
        assert bound in found, alert
