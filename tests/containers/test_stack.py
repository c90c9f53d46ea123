"""docker-compose.yml as it is: started, loaded, killed, given keys, and taken down."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.containers.containers import PAIR, wait_until
from tests.containers.engine import Engine
from tests.support.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PORTS = ("TINYRM_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT", "LOAD_PORT", "DOCS_PORT")
# Each starts when the one before is healthy.
IN_ORDER = ("tinyrm", "prometheus", "grafana")
SERVICES = (*IN_ORDER, "alertmanager")
# The time that the panels' rates cover.
LOAD_S = 30
# A model that reads sets has no order, and these panels no data.
OF_ORDERS = ("tinyrm_first_position_margin", "tinyrm_swapped_comparisons_total")
WITH_KEYS = ("-f", "docker-compose.yml", "-f", "deploy/compose/keys.yml")


@dataclass(frozen=True)
class Stack:
    """A running stack.

    ports: by variable.
    events: returns what happened to its containers.
    """

    engine: Engine
    ports: dict[str, str]
    client: httpx.Client
    events: Callable[[], list[tuple[str, str]]]

    def compose(self, *arguments: str, **environment: str) -> str:
        return self.engine.compose(*arguments, **self.ports, **environment)

    def inspect(self, service: str) -> dict[str, Any]:
        return self.engine.inspect(self.compose("ps", "-q", service).strip())

    def health(self, service: str) -> str:
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def get(self, variable: str, path: str, **parameters: str) -> httpx.Response:
        return self.client.get(f"http://127.0.0.1:{self.ports[variable]}{path}", params=parameters)

    def compare(self, key: str | None = None) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"http://127.0.0.1:{self.ports['TINYRM_PORT']}/v1/compare"
        return self.client.post(url, json=PAIR, headers=headers).status_code

    def query(self, expression: str) -> float | None:
        """Return the one number of a query; None if there is none."""
        answer = self.get("PROMETHEUS_PORT", "/api/v1/query", query=expression).json()["data"]["result"]
        return float(answer[0]["value"][1]) if answer else None

    def is_scraped(self) -> bool:
        return self.query('up{job="tinyrm"}') == 1.0


@pytest.fixture(scope="module")
def stack(engine: Engine) -> Iterator[Stack]:
    ports = {name: str(free_port()) for name in PORTS}
    with (
        httpx.Client(timeout=30, trust_env=False) as client,
        engine.events() as events,
        cleared_away(Stack(engine, ports, client, events)) as running,
    ):
        running.compose("build", "tinyrm")
        running.compose("up", "--detach")
        wait_until(lambda: running.health("grafana") == "healthy", "Grafana, the last one, is healthy")
        yield running


@contextmanager
def cleared_away(stack: Stack) -> Iterator[Stack]:
    try:
        yield stack
    except BaseException:
        sys.stderr.write(stack.compose("logs", "--no-color", "--tail", "40"))
        raise
    finally:
        stack.compose("--profile", "load", "--profile", "docs", "down", "--volumes", "--timeout", "30")


def test_each_service_waits_for_the_health_of_the_one_before(stack: Stack) -> None:
    events = stack.events()
    for earlier, later in pairwise(IN_ORDER):
        assert events.index((earlier, "health_status: healthy")) < events.index((later, "start")), events


def test_ports_are_open_on_this_machine_only(stack: Stack) -> None:
    for service in SERVICES:
        bindings = [b for found in stack.inspect(service)["NetworkSettings"]["Ports"].values() for b in found or []]
        assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]


def test_the_limits_of_the_file_are_applied(stack: Stack) -> None:
    host = stack.inspect("tinyrm")["HostConfig"]
    assert host["Memory"] == 2 * 2**30
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert stack.inspect("prometheus")["HostConfig"]["NanoCpus"] == 1e9


def test_prometheus_takes_its_configuration_and_scrapes(stack: Stack) -> None:
    assert "SUCCESS" in stack.compose(
        "exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml"
    )
    wait_until(stack.is_scraped, "the service is scraped")
    assert stack.compare() == 200
    wait_until(lambda: (stack.query("sum(tinyrm_preferences_total)") or 0) >= 1, "a comparison is counted")


def test_every_panel_has_data_under_load(stack: Stack) -> None:
    stack.compose("--profile", "load", "build", "load")
    stack.compose("--profile", "load", "up", "--detach", "load")
    wait_until(lambda: is_loading(stack), "load is sent")
    time.sleep(LOAD_S)
    with suppress(AssertionError):
        wait_until(lambda: not report(stack)["errors"], "every query has data", pause_s=3)
    found = report(stack)
    assert found["errors"] == []
    assert found["queries"] > 10
    assert found["home"] == "tinyrm-overview"
    assert comparisons_a_second(stack) > 1
    stats = stack.get("LOAD_PORT", "/stats/requests").json()
    assert stats["fail_ratio"] == 0
    stack.compose("--profile", "load", "stop", "load")


def is_loading(stack: Stack) -> bool:
    """Return whether Locust sends requests."""
    with suppress(httpx.TransportError):
        return bool(stack.get("LOAD_PORT", "/stats/requests").json()["total_rps"] > 0)
    return False


def comparisons_a_second(stack: Stack) -> float:
    return stack.query("sum(rate(tinyrm_preferences_total[30s]))") or 0.0


def report(stack: Stack) -> dict[str, Any]:
    found = dict(stack.get("GRAFANA_PORT", "/report").json())
    missing = [error for error in found["errors"] if "no data" not in error or not any(m in error for m in OF_ORDERS)]
    return found | {"errors": missing}


def test_a_stopped_service_is_an_alert_in_alertmanager(stack: Stack) -> None:
    assert "TinyRMDown" not in firing(stack)
    stack.compose("stop", "--timeout", "30", "tinyrm")
    wait_until(lambda: "TinyRMDown" in firing(stack), "the alert arrives")
    stack.compose("start", "tinyrm")
    wait_until(lambda: stack.health("tinyrm") == "healthy", "healthy again")
    wait_until(stack.is_scraped, "scraped again")


def firing(stack: Stack) -> set[str]:
    return {alert["labels"]["alertname"] for alert in stack.get("ALERTMANAGER_PORT", "/api/v2/alerts").json()}


def test_a_killed_service_is_restarted(stack: Stack) -> None:
    os.kill(stack.inspect("tinyrm")["State"]["Pid"], signal.SIGKILL)
    wait_until(lambda: stack.inspect("tinyrm")["RestartCount"] == 1, "restarted")
    wait_until(lambda: stack.health("tinyrm") == "healthy", "healthy again")
    wait_until(stack.is_scraped, "scraped again")


def test_keys_are_required_and_prometheus_has_one(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "service").mkdir()
    owner = {"RUN_AS": f"{os.getuid()}:{os.getgid()}", "SECRETS": str(tmp_path)}
    keys = ("run", "--rm", "--no-deps", "-T", "-v", f"{tmp_path}/service:/keys", "tinyrm", "service.keys", "--file")
    key = stack.compose(*keys, "/keys/keys.json", "new", "--name", "prometheus", "--scopes", "metrics,score", **owner)
    (tmp_path / "metrics_key").write_text(key)
    (tmp_path / "grafana_password").write_text("not of this test")
    stack.compose(*WITH_KEYS, "up", "--detach", **owner)
    assert (stack.compare(), stack.compare(key.strip())) == (401, 200)
    wait_until(stack.is_scraped, "scraped with a key")
    stack.compose(*keys, "/keys/keys.json", "revoke", "--name", "prometheus", **owner)
    assert stack.compare(key.strip()) == 401
    wait_until(lambda: not stack.is_scraped(), "a revoked key is refused")


def test_the_documentation_is_served(stack: Stack) -> None:
    stack.compose("--profile", "docs", "up", "--detach", "docs")
    wait_until(lambda: serves_pages(stack), "pages are served")
    stack.compose("--profile", "docs", "stop", "docs")


def serves_pages(stack: Stack) -> bool:
    with suppress(httpx.TransportError):
        return stack.get("DOCS_PORT", "/").status_code == 200
    return False


def test_every_service_exits_with_0_when_stopped(stack: Stack) -> None:
    stack.compose("stop", "--timeout", "30")
    assert {service: stack.inspect(service)["State"]["ExitCode"] for service in SERVICES} == dict.fromkeys(SERVICES, 0)
    stack.compose("down", "--volumes")
    assert stack.compose("ps", "-q").strip() == ""
    with pytest.raises(httpx.TransportError):
        stack.get("TINYRM_PORT", "/healthz")


def test_compose_accepts_both_files(engine: Engine) -> None:
    engine.compose("config", "--quiet")
    engine.compose(*WITH_KEYS, "config", "--quiet")
