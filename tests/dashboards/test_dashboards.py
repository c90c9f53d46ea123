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
from tools.dashboards.__main__ import files, main
from tools.dashboards.bounds import DOCS_URL, Bounds

GRAFANA = REPOSITORY / "deploy" / "grafana"
PROVISIONING = GRAFANA / "provisioning"
PANELS = [(name, panel) for name, dashboard in dashboards().items() for panel in dashboard["panels"]]
# Series that Prometheus itself adds for a target.
OWN_SERIES = {"up", "scrape_duration_seconds", "scrape_samples_scraped"}
RECORDED = re.compile(r"\b\w+:tinyrm_\w+:\w+")


def provisioned(kind: str) -> Any:
    (file,) = (PROVISIONING / kind).glob("*.yml")
    return yaml.safe_load(file.read_text())


def names(expression: str) -> set[str]:
    """Return the names of the metrics in a query."""
    expression = RECORDED.sub("", expression)
    without_labels = re.sub(r"\{[^}]*\}", "{}", re.sub(r"\b(?:by|on) \([^)]*\)", "", expression))
    return set(re.findall(r"\b(?:tinyrm|scrape)_\w+", without_labels))


def exposed() -> set[str]:
    lines = Metrics(["openrlhf"]).expose().decode().splitlines()
    declared = {line.split()[2] for line in lines if line.startswith("# HELP")}
    return declared | {re.split("[{ ]", line)[0] for line in lines if not line.startswith("#")} | OWN_SERIES


def test_committed_dashboards_and_rules_are_those_of_the_code(tmp_path: Path) -> None:
    committed = {f"grafana/dashboards/{file.name}": file.read_text() for file in DASHBOARDS.iterdir()}
    committed["prometheus/rules.yml"] = RULES.read_text()
    assert committed == files(), "run `python -m tools.dashboards`"
    assert main([str(tmp_path)]) == 0
    assert {name: (tmp_path / name).read_text() for name in committed} == committed


def test_another_objective_changes_rules_and_dashboards_alike(tmp_path: Path) -> None:
    command = [str(tmp_path), "--latency-objective", "0.2", "--latency-target", "0.95", "--docs-url", "https://docs/x/"]
    assert main(command) == 0
    made = {name: (tmp_path / name).read_text() for name in files()}
    assert 'le="1.0"' not in made["prometheus/rules.yml"] + made["grafana/dashboards/latency.json"]
    assert 'le="0.2"' in made["prometheus/rules.yml"]
    assert "14.4 * 0.05" in made["prometheus/rules.yml"]
    assert 'le=\\"0.2\\"' in made["grafana/dashboards/latency.json"]
    assert not any(DOCS_URL in text for text in made.values())
    assert "https://docs/x/operations/#tinyrmdown" in made["prometheus/rules.yml"]


@pytest.mark.parametrize(
    "words", [("--latency-objective", "0.3"), ("--latency-target", "1"), ("--availability-target", "99.9")]
)
def test_an_objective_that_cannot_be_counted_is_refused(
    words: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), *words])
    assert words[0].lstrip("-").replace("-", "_") in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_six_dashboards_are_there() -> None:
    assert set(dashboards()) == {"overview", "latency", "cost", "load", "judgement", "process"}
    uids = [dashboard["uid"] for dashboard in dashboards().values()]
    assert len(set(uids)) == 6


def test_every_dashboard_links_to_the_others_the_runbooks_and_the_logs() -> None:
    for dashboard in dashboards().values():
        links = {link["title"]: link for link in dashboard["links"]}
        assert links["TinyRM"]["type"] == "dashboards"
        assert dashboard["tags"] == links["TinyRM"]["tags"]
        assert links["Runbooks"]["url"] == f"{DOCS_URL}/operations/"
        assert links["Logs"]["url"] == f"{DOCS_URL}/logs/"


def test_a_panel_links_to_the_runbook_of_an_alert_that_exists() -> None:
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    known = {f"{DOCS_URL}/operations/#{alert.lower()}" for alert in alerts}
    linked = {link["url"] for _, panel in PANELS for link in panel.get("links", [])}
    assert linked <= known
    assert len(linked) >= 8


def test_every_query_names_metrics_that_exist_and_the_chosen_instances() -> None:
    known = exposed()
    for query in panel_queries():
        expression = query.target["expr"]
        assert names(expression) <= known, query
        for selector in re.findall(r"tinyrm_\w+(\{[^}]*\})?", RECORDED.sub("", expression)):
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


def test_panels_use_the_data_source_of_the_variable_which_is_a_prometheus() -> None:
    assert {panel["datasource"]["uid"] for _, panel in PANELS} == {"${datasource}"}
    for dashboard in dashboards().values():
        source, instance = dashboard["templating"]["list"]
        assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
        assert instance["datasource"]["uid"] == "${datasource}"


def test_prometheus_is_the_provisioned_default_and_alertmanager_is_there() -> None:
    sources = {source["uid"]: source for source in provisioned("datasources")["datasources"]}
    assert {uid: (source["type"], source.get("isDefault", False)) for uid, source in sources.items()} == {
        "prometheus": ("prometheus", True),
        "alertmanager": ("alertmanager", False),
    }
    assert sources["alertmanager"]["jsonData"]["implementation"] == "prometheus"


def test_grafana_reads_dashboards_from_their_mount() -> None:
    (provider,) = provisioned("dashboards")["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/etc/grafana/dashboards")


def test_a_month_of_data_is_kept_for_the_error_budgets() -> None:
    command = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]["prometheus"]["command"]
    assert "--storage.tsdb.retention.time=31d" in command


def test_the_budgets_are_what_the_targets_leave() -> None:
    assert Bounds().budgets == {"availability": 0.001, "latency": 0.01}
