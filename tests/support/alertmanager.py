"""A real Alertmanager, as Debian packages it, and a receiver of its messages."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import yaml

from tests.support.processes import free_port
from tests.support.prometheus import DEPLOY, tool, wait_until_up

CONFIGURATION = DEPLOY / "alertmanager" / "alertmanager.yml"
Messages = SimpleQueue[dict[str, Any]]


@dataclass(frozen=True)
class Alertmanager:
    """A running server.

    messages: what its receivers were sent.
    """

    port: int
    client: httpx.Client
    messages: Messages

    def alerts(self) -> list[dict[str, Any]]:
        reply = self.client.get("/api/v2/alerts")
        assert reply.status_code == 200, reply.text
        return list(reply.json())

    def post(self, *labels: dict[str, str]) -> None:
        """Fire alerts with these labels."""
        reply = self.client.post("/api/v2/alerts", json=[{"labels": one} for one in labels])
        assert reply.status_code == 200, reply.text


def uncommented(kind: str) -> str:
    """Return the configuration with the example of one kind of receiver in use."""
    return re.sub(rf"^    # (.+?) +# {kind}$", r"    \1", CONFIGURATION.read_text(), flags=re.MULTILINE)


@contextmanager
def alerting(folder: Path) -> Iterator[Alertmanager]:
    """Run an Alertmanager with the project's configuration: it sends at once, and to a receiver of this process."""
    own = free_port()
    with receiving() as (address, messages):
        config = yaml.safe_load(CONFIGURATION.read_text())
        for route in (config["route"], *config["route"]["routes"]):
            route |= {"group_wait": "0s", "group_interval": "1s"}
        for receiver in config["receivers"]:
            receiver["webhook_configs"] = [{"url": address}]
        (folder / "alertmanager.yml").write_text(json.dumps(config))
        command = [
            tool("prometheus-alertmanager"),
            f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alerts'}",
            f"--web.listen-address=127.0.0.1:{own}",
            "--cluster.listen-address=",
            "--log.level=warn",
        ]
        with (folder / "alertmanager.log").open("wb") as log:
            popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{own}", timeout=30, trust_env=False) as client:
                wait_until_up(popen, client, folder / "alertmanager.log")
                yield Alertmanager(own, client, messages)
        finally:
            popen.terminate()
            popen.wait(30)


@contextmanager
def receiving() -> Iterator[tuple[str, Messages]]:
    """Receive messages. Yields the address for them, and where they arrive."""
    messages: Messages = SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", messages
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
