"""Run a Ray cluster of real nodes on this machine, started with --block and stopped by pid, and deploy to it."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.support.processes import free_port, new_client
from tinyrm.bulk.ray_runner import TOO_SLOW

CONFIG = REPOSITORY / "deploy" / "ray" / "serve.yaml"
# Starting Ray on a busy machine of two cores takes most of a minute, and a test waits for several starts.
PATIENCE_S = 240
# Ray and Serve take away a node, a replica or a proxy that does not answer in time. Here, all share a machine that may
# be busy with other tests, and only a test may take one away. A killed one is noticed at once, whatever these are.
PATIENT = {
    "RAY_health_check_timeout_ms": str(1000 * PATIENCE_S),
    "RAY_agent_register_timeout_ms": str(1000 * PATIENCE_S),
    "RAY_worker_register_timeout_seconds": str(PATIENCE_S),
    "RAY_memory_monitor_refresh_ms": "0",  # the memory that other tests use is none of the cluster's
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(PATIENCE_S),
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": str(PATIENCE_S),
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(PATIENCE_S),
}
SCRIPTS = Path(sys.executable).parent
OBJECT_STORE_BYTES = 100 * 2**20
# Of a node that a busy machine starts too slowly.
STARTS = 3


class Cluster:
    """nodes: the processes of `ray start`, the head first. port: of the proxy on the head only: both nodes are
    on one machine, and a port exists once."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port, self.gcs_port, self.dashboard_port = free_port(), free_port(), free_port()
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.starts = 0
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TINYRM_"))},
            "PYTHONPATH": str(REPOSITORY),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            # Who may use the cluster; Ray would keep one for all clusters of a user in their home.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            **PATIENT,
            **environment,
        }

        # Kept: making one takes a tenth of a second of a processor, which the cluster needs while a test waits for it.
        self.dashboard = httpx.Client(
            base_url=self._dashboard,
            headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"},
            timeout=PATIENCE_S,
            trust_env=False,
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gcs_port}"

    def start_head(self, cpus: int = 2) -> None:
        self._start(
            "--head",
            f"--port={self.gcs_port}",
            f"--dashboard-port={self.dashboard_port}",
            f"--num-cpus={cpus}",
            "--dashboard-host=127.0.0.1",
            "--include-dashboard=true",
            f"--ray-client-server-port={free_port()}",
            f"--temp-dir={self.folder}",
            '--resources={"head": 1}',
        )
        self.wait(self._answers, "the head does not answer")

    def add_node(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}")

    def deploy(self, changes: Any = None, **scorer: Any) -> None:
        """Deploy serve.yaml with the given changes to arguments and replicas, and wait until it runs."""
        config = config_with(self.port, changes or {}, scorer)
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [SCRIPTS / "serve", "deploy", path, "--address", self._dashboard],
            env=self.environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def wait_until_running(self, replicas: int) -> None:
        self.wait(lambda: self.is_running(replicas), f"no {replicas} replicas", self.status)

    def is_running(self, replicas: int) -> bool:
        application = self.status()
        assert application.get("status") != "DEPLOY_FAILED", application
        scorers = self.replicas()
        states = [replica["state"] for replica in scorers]
        return application.get("status") == "RUNNING" and states == ["RUNNING"] * replicas

    def status(self) -> dict[str, Any]:
        reply = self._applications()
        application: dict[str, Any] = reply.json()["applications"].get("tinyrm", {})
        return application

    def replicas(self) -> list[dict[str, Any]]:
        return list(self.status().get("deployments", {}).get("Scorer", {}).get("replicas", []))

    def client(self) -> httpx.Client:
        return new_client(self.port)

    def wait(self, condition: Any, failure: str, more: Any = None) -> float:
        """Wait for a condition; return the seconds until it held."""
        began = time.monotonic()
        while time.monotonic() < began + PATIENCE_S:
            for number, node in enumerate(self.nodes):
                if node.poll() is not None:
                    self._start_again(number)
            with suppress(httpx.TransportError, json.JSONDecodeError, KeyError):
                if condition():
                    return time.monotonic() - began
            time.sleep(0.2)
        shown = json.dumps(more(), indent=1)[-3000:] if more else ""
        pytest.fail(f"{failure}: {shown}\n{self._logs()}")

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kill a node and everything on it at once, as if its machine lost power."""
        self.nodes.remove(node)
        kill_family(node.pid)
        node.wait()

    def close(self) -> None:
        for node in reversed(self.nodes):
            kill_family(node.pid)
            node.wait()
        self.nodes.clear()
        self.dashboard.close()

    @property
    def _dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def _answers(self) -> bool:
        return self._applications().status_code == httpx.codes.OK

    def _applications(self) -> httpx.Response:
        return self.dashboard.get("/api/serve/applications/")

    def _logs(self) -> str:
        """Return the ends of the logs: of each node, and of Serve's controller, which says what it starts and stops."""
        logs = [*self.folder.glob("node-*.log"), *self.folder.glob("session_2*/logs/serve/controller_*.log")]
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(logs))

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        common = (
            "--min-worker-port=0",
            "--max-worker-port=0",  # Ray's own range holds our free ports
            "--block",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--dashboard-agent-listen-port={free_port()}",
        )
        self.nodes.append(self._run([str(SCRIPTS / "ray"), "start", *common, *words], len(self.nodes)))
        return self.nodes[-1]

    def _run(self, command: list[str], number: int) -> subprocess.Popen[bytes]:
        with (self.folder / f"node-{number}.log").open("wb") as log:
            # A group, not a session: Linux shares processors among sessions, and a node with one of its own would wait
            # for all that runs in the session of the tests.
            return subprocess.Popen(
                command, env=self.environment, cwd=REPOSITORY, stdout=log, stderr=log, process_group=0
            )

    def _start_again(self, number: int) -> None:
        """Start a node again that a busy machine did not start in time. Fail if it left for another reason."""
        left = self.nodes[number]
        self.starts += 1
        may_be_repeated = self.starts < STARTS and TOO_SLOW in (self.folder / f"node-{number}.log").read_text()
        assert may_be_repeated, f"a node left with {left.returncode}: {self._logs()}"
        with suppress(ProcessLookupError):
            os.killpg(left.pid, signal.SIGKILL)  # what it had started
        command: list[str] = list(left.args)  # type: ignore[arg-type] - as `_run` passed it
        self.nodes[number] = self._run(command, number)


def kill_family(pid: int) -> None:
    """Stop all processes before one is killed: workers are the raylet's children and survive it for a while."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
        for sent in (signal.SIGSTOP, signal.SIGKILL):
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(sent)
        psutil.wait_procs(family[1:], timeout=PATIENCE_S)


def config_with(port: int, args: dict[str, Any], scorer: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config |= {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": port}}
    (application,) = config["applications"]
    application["args"] |= args
    ingress, scorers = application["deployments"]
    ingress["ray_actor_options"] = {"num_cpus": 0, "resources": {"head": 0.1}}
    if "num_replicas" in scorer:
        del scorers["autoscaling_config"]
    scorers |= {"health_check_timeout_s": PATIENCE_S, **scorer}
    return config


@contextmanager
def cluster(**environment: str) -> Iterator[Cluster]:
    """Run a cluster and remove all of it. Its folder is short: the path of a Unix socket may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    running = Cluster(folder, **environment)
    try:
        yield running
    finally:
        running.close()
        shutil.rmtree(folder, ignore_errors=True)
