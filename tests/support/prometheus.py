"""A real Prometheus, as Debian packages it, and the queries of the dashboards."""

import json
import math
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.support.processes import free_port

DEPLOY = REPOSITORY / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
START_S = 30


def tool(name: str) -> str:
    """Return the path of `prometheus` or `promtool`. Skips the test if this machine has none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} on this machine; `.ci/apt.sh` installs it")
    return path


@dataclass(frozen=True)
class PanelQuery:
    """A query of a panel."""

    dashboard: str
    panel: dict[str, Any]
    target: dict[str, Any]

    def expression(self, interval: str) -> str:
        """Return PromQL as Grafana would send it, with its variables filled in."""
        filled = {"$__rate_interval": interval, "$__interval": interval, "$__range": "30m", "$instance": ".*"}
        text: str = self.target["expr"]
        for name, value in filled.items():
            text = text.replace(name, value)
        return text

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel['title']} {self.target['refId']}"


def dashboards() -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))}


def panel_queries() -> list[PanelQuery]:
    return [
        PanelQuery(name, panel, target)
        for name, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


@dataclass(frozen=True)
class Prometheus:
    """A running server. Times are seconds since the epoch."""

    client: httpx.Client

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the series that have a number at that time. 0 / 0 is NaN, which is not one."""
        parameters = {"query": expression} | ({"time": str(at)} if at else {})
        found = self._get("/api/v1/query", parameters)["result"]
        return [series for series in found if math.isfinite(float(series["value"][1]))]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        parameters = {"query": expression, "start": str(start), "end": str(end), "step": str(step)}
        return list(self._get("/api/v1/query_range", parameters)["result"])

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("/api/v1/rules", {})["groups"] for rule in group["rules"]]

    def _get(self, path: str, parameters: dict[str, str]) -> Any:
        reply = self.client.get(path, params=parameters)
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]


@contextmanager
def scraping(
    port: int, folder: Path, interval: str = "1s", *, alertmanager: int | None = None, is_patient: bool = True
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes a service under the project's rules, all of them at its own interval.

    port: of the service.
    folder: for its configuration, log and data.
    alertmanager: the port of the Alertmanager that gets alerts.
    is_patient: False fires alerts at once, without their `for`.
    """
    own = free_port()
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            if not is_patient:
                rule.pop("for", None)
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval},
        "rule_files": ["rules.yml"],
        "alerting": {
            "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}] if alertmanager else []
        },
        "scrape_configs": [{"job_name": "tinyrm", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{own}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{own}", timeout=30, trust_env=False) as client:
            wait_until_up(popen, client, folder / "prometheus.log")
            yield Prometheus(client)
    finally:
        popen.terminate()
        popen.wait(30)


def wait_until_up(popen: "subprocess.Popen[bytes]", client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert popen.poll() is None, log.read_text()
        with suppress(httpx.TransportError):
            if client.get("/-/ready").status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail(f"Prometheus was not ready in time: {log.read_text()}")
