"""Let a real Prometheus scrape the service under load: every panel has data, and every rule is evaluated."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.e2e.traffic import traffic
from tests.support.processes import Process, started
from tests.support.prometheus import RULES, Prometheus, dashboards, panel_queries, scraping, tool

pytestmark = pytest.mark.slow

# Rates need several scrapes in their window, and load during all of it.
WINDOW_S, LOAD_S = 10, 20


@dataclass(frozen=True)
class Watched:
    """at: a moment under load, in seconds since the epoch."""

    service: Process
    prometheus: Prometheus
    at: float


@pytest.fixture(scope="module")
def watched(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Watch a model that reads pairs: the panels of orders have data, too."""
    with started(bundle_folder) as service, scraping(service.port, tmp_path_factory.mktemp("prometheus")) as prometheus:
        with traffic(service):
            time.sleep(LOAD_S)
            at = time.time()
        time.sleep(2)
        yield Watched(service, prometheus, at)


@pytest.mark.parametrize("name", dashboards())
def test_every_query_of_a_dashboard_has_data(name: str, watched: Watched) -> None:
    queries = [query for query in panel_queries() if query.dashboard == name]
    empty = [str(q) for q in queries if not watched.prometheus.query(q.expression(f"{WINDOW_S}s"), watched.at)]
    assert queries
    assert empty == []


def test_a_query_without_a_number_has_no_data(watched: Watched) -> None:
    assert watched.prometheus.query("tinyrm_nothing", watched.at) == []
    assert watched.prometheus.query("vector(0) / vector(0)", watched.at) == []


def test_the_rules_are_evaluated_and_recorded(watched: Watched) -> None:
    written = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    loaded = watched.prometheus.rules()
    names = sorted(rule.get("record") or rule["alert"] for rule in written)
    assert sorted(rule["name"] for rule in loaded) == names
    assert {(rule["name"], rule["health"], rule.get("lastError")) for rule in loaded} == {
        (rule["name"], "ok", None) for rule in loaded
    }
    for rule in written:
        if "record" in rule:
            assert watched.prometheus.query(rule["record"], watched.at), rule["record"]


def test_every_scrape_succeeded(watched: Watched) -> None:
    (up,) = watched.prometheus.query(f"min_over_time(up[{LOAD_S - 2}s])", watched.at)
    assert float(up["value"][1]) == 1
    (scrapes,) = watched.prometheus.query(f"count_over_time(up[{LOAD_S}s])", watched.at)
    assert float(scrapes["value"][1]) >= LOAD_S / 2


def test_names_and_types_follow_the_rules_of_prometheus(watched: Watched) -> None:
    text = watched.service.get("/metrics").content
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
