"""A stand-in for Grafana: it reads provisioning and dashboards from Grafana's paths, and runs every query of every
panel through the data source's address. GET /report returns the errors; an empty panel is one.
"""

import json
import os
import re
import signal
import sys
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

PROVISIONING = Path("/etc/grafana/provisioning")
HOME = os.environ.get("GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH")
BUILT_IN = {"__rate_interval": "30s", "__interval": "10s", "__range": "5m", "__interval_ms": "10000"}


def report() -> dict[str, Any]:
    sources = {d["uid"]: d for file in provisioned("datasources") for d in file["datasources"]}
    folders = [Path(p["options"]["path"]) for file in provisioned("dashboards") for p in file["providers"]]
    boards = [json.loads(f.read_text()) for folder in folders for f in sorted(folder.rglob("*.json"))]
    results = [
        run_query(board, panel, target, sources) for board in boards for panel, target in targets(board["panels"])
    ]
    return {
        "datasources": sorted(sources),
        "dashboards": sorted(board["uid"] for board in boards),
        "home": json.loads(Path(HOME).read_text())["uid"] if HOME else None,
        "queries": len(results),
        "errors": [error for error in [*results, *map(check_alertmanager, sources.values())] if error],
    }


def check_alertmanager(source: dict[str, Any]) -> str | None:
    """Return the error of a data source of alerts; None if it answers."""
    if source["type"] != "alertmanager":
        return None
    try:
        with urllib.request.urlopen(f"{source['url']}/api/v2/alerts", timeout=10) as reply:
            json.load(reply)
    except OSError as error:
        return f"{source['name']}: {error}"
    return None


def provisioned(kind: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(f.read_text()) for f in sorted((PROVISIONING / kind).glob("*.y*ml"))]


def targets(panels: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each panel with each of its queries; a collapsed row contains its panels."""
    own = [(panel, target) for panel in panels for target in panel.get("targets", [])]
    return own + [pair for panel in panels for pair in targets(panel.get("panels", []))]


def run_query(
    board: dict[str, Any], panel: dict[str, Any], target: dict[str, Any], sources: dict[str, dict[str, Any]]
) -> str | None:
    """Return the error of a query; None if it has data."""
    where = f"{board['title']} / {panel['title']}"
    variables = {v["name"]: value_of(v, sources) for v in board.get("templating", {}).get("list", [])}
    uid = substitute((target.get("datasource") or panel.get("datasource") or {}).get("uid", ""), variables)
    if uid not in sources:
        return f"{where}: no data source {uid!r} is provisioned"
    query = substitute(target["expr"], BUILT_IN | variables)
    address = f"{sources[uid]['url']}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(address, timeout=10) as reply:
            result = json.load(reply)["data"]["result"]
    except OSError as error:
        return f"{where}: {error}: {query}"
    return None if any(series["value"][1] != "NaN" for series in result) else f"{where}: no data: {query}"


def value_of(variable: dict[str, Any], sources: dict[str, Any]) -> str:
    """Return the default data source of its kind for a data source variable, and everything for others."""
    if variable["type"] != "datasource":
        return ".*"
    kind = [source for source in sources.values() if source["type"] == variable["query"]]
    return next((source["uid"] for source in kind if source.get("isDefault")), "")


def substitute(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$(?:\{(\w+)[^}]*\}|(\w+))", lambda m: values.get(m[1] or m[2], m[0]), text)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = {"database": "ok"} if self.path == "/api/health" else report()
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_HEAD(self) -> None:
        """Answer wget --spider."""
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing: a health check comes every few seconds."""


if __name__ == "__main__":
    # The first process of a container has no default for SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
