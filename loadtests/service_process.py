"""Start `python -m service` as a process; watch, measure and kill it from outside."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.wire import Client

START_TIMEOUT_S = 120
ENGINE_MODULE = "service.engine.worker"
STARTER = Path("models/starter")
COMMAND = (sys.executable, "-m", "service")


class NotServing(Exception):
    """The service exited, or was not ready in time. The message is its last line."""


@dataclass(frozen=True, slots=True)
class Service:
    """A started service.

    log: the file that its output goes to.
    """

    popen: "subprocess.Popen[bytes]"
    port: int
    log: Path

    async def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Return the seconds until /readyz returned 200. Raises NotServing."""
        client, started_at = Client(self.port, keep_alive=False, timeout_s=2), time.perf_counter()
        while time.perf_counter() - started_at < timeout_s:
            self.check_runs()
            if await client.status("/readyz") == 200:
                return time.perf_counter() - started_at
            await asyncio.sleep(0.02)
        raise NotServing(f"not ready within {timeout_s:g} s: {last_line(self.log)}")

    def check_runs(self) -> None:
        """Raise NotServing if the process has ended."""
        if self.popen.poll() is not None:
            raise NotServing(f"exited with {self.popen.returncode}: {last_line(self.log)}")

    def tree(self) -> list[psutil.Process]:
        """Return the service and its descendants. Empty once the service ended, as its pid may be reused."""
        if self.popen.poll() is not None:
            return []
        try:
            root = psutil.Process(self.popen.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def engine(self) -> psutil.Process | None:
        """Return the child that runs the engine; None if there is none."""
        for process in self.tree()[1:]:
            with suppress(psutil.Error):
                if ENGINE_MODULE in " ".join(process.cmdline()):
                    return process
        return None

    def rss_bytes(self) -> int:
        """Return the resident memory of the whole tree. A page shared by two processes counts twice."""
        total = 0
        for process in self.tree():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def kill(self) -> list[psutil.Process]:
        """Send SIGKILL to the service alone, as the kernel would. Return its children."""
        children = self.tree()[1:]
        self.popen.kill()
        self.popen.wait()
        return children

    async def stop(self, within_s: float) -> int | None:
        """Send SIGTERM. Return the exit code, or None if the service still runs after `within_s`."""
        self.popen.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(self.popen.wait, within_s)
        return None

    def clear_away(self) -> None:
        """Kill every process that still runs."""
        for process in reversed(self.tree()):
            with suppress(psutil.Error):
                process.kill()
        self.popen.wait()


def launch(settings: Mapping[str, object], log: Path, port: int) -> Service:
    """Start the service and return at once.

    settings: names without prefix, in lower case.
    """
    # One connection for each request under way; the service inherits the limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with log.open("ab") as output:
        popen = subprocess.Popen(  # noqa: S603  # the command above
            COMMAND,
            env=environment({"port": port, **settings}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Service(popen, port, log)


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Return our environment with these settings of the service and no others."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("TINYRM_")}
    return others | {f"TINYRM_{name.upper()}": str(value) for name, value in settings.items()}


@asynccontextmanager
async def started(**settings: object) -> AsyncIterator[Service]:
    """Run a service that is ready, and leave no process of it behind. Raises NotServing."""
    with tempfile.TemporaryDirectory() as folder:
        service = launch(settings, Path(folder) / "service.log", free_port())
        try:
            await service.wait_ready()
            yield service
        finally:
            service.clear_away()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_line(log: Path) -> str:
    """Return the last line of a log, of a JSON line only its event and reason."""
    line = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["the log is empty"])[-1]
    with suppress(ValueError, AttributeError):
        fields = json.loads(line)
        line = ": ".join(str(fields[key]) for key in ("event", "reason") if key in fields) or line
    return line[:300]
