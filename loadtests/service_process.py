"""`python -m service` as a process: started, watched, measured and killed from outside."""

import asyncio
import json
import os
import re
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

from loadtests.wire import Client, status_of

START_TIMEOUT_S = 120
ENGINE_MODULE = "service.engine.worker"
STARTER = Path("models/starter")
COMMAND = (sys.executable, "-m", "service")
SETTING = re.compile(r"^\| `TINYRM_([A-Z0-9_]+)` \| `([^`]*)` \|", flags=re.MULTILINE)


class NotServing(Exception):
    """The service left, or was not ready in time. The message is the last thing it said."""


@dataclass(frozen=True, slots=True)
class Service:
    """A started service. log: what it prints."""

    popen: "subprocess.Popen[bytes]"
    port: int
    log: Path

    async def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Seconds until /readyz said yes. Raises NotServing."""
        client, begun = Client(self.port, keep_alive=False, timeout_s=2), time.perf_counter()
        while time.perf_counter() - begun < timeout_s:
            self.check_runs()
            if await status_of(client, "/readyz") == 200:
                return time.perf_counter() - begun
            await asyncio.sleep(0.02)
        raise NotServing(f"not ready within {timeout_s:g} s: {last_line(self.log)}")

    def check_runs(self) -> None:
        """Raises NotServing if the process has ended."""
        if self.popen.poll() is not None:
            raise NotServing(f"left with {self.popen.returncode}: {last_line(self.log)}")

    def tree(self) -> list[psutil.Process]:
        """The process and all that it started and still runs. Empty once it ended: its number may be reused."""
        if self.popen.poll() is not None:
            return []
        try:
            root = psutil.Process(self.popen.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def engine(self) -> psutil.Process | None:
        """The child that runs the engine, if this service has one."""
        for process in self.tree()[1:]:
            with suppress(psutil.Error):
                if ENGINE_MODULE in " ".join(process.cmdline()):
                    return process
        return None

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree; pages that processes share count once for each."""
        total = 0
        for process in self.tree():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def kill(self) -> list[psutil.Process]:
        """SIGKILL to the service itself, as the kernel does it; its children are left to notice. Returns those."""
        children = self.tree()[1:]
        self.popen.kill()
        self.popen.wait()
        return children

    async def stop(self, within_s: float) -> int | None:
        """SIGTERM; the exit code, or None if it still runs after that time."""
        self.popen.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(self.popen.wait, within_s)
        return None

    def clear_away(self) -> None:
        """Kill whatever still runs."""
        for process in reversed(self.tree()):
            with suppress(psutil.Error):
                process.kill()
        self.popen.wait()


def launch(settings: Mapping[str, object], log: Path, port: int) -> Service:
    """Start the service and do not wait. settings: names without prefix, in lower case."""
    # A connection for every request under way, and the service inherits the limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with log.open("ab") as output:
        popen = subprocess.Popen(  # noqa: S603  # the command above
            COMMAND, env=environment({"port": port, **settings}),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return Service(popen, port, log)


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This one, with these settings and no others."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("TINYRM_")}
    return others | {f"TINYRM_{name.upper()}": str(value) for name, value in settings.items()}


@asynccontextmanager
async def started(**settings: object) -> AsyncIterator[Service]:
    """A service that is ready; at the end nothing of it is left. Raises NotServing."""
    with tempfile.TemporaryDirectory() as folder:
        service = launch(settings, Path(folder) / "service.log", free_port())
        try:
            await service.wait_ready()
            yield service
        finally:
            service.clear_away()


def known_settings() -> dict[str, str]:
    """Names, in lower case and without prefix, and defaults: a setting the service does not know is an error there."""
    command = [*COMMAND, "--settings"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return {name.lower(): default for name, default in SETTING.findall(done.stdout)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def last_line(log: Path) -> str:
    """The last thing the service said, without the fields that every line of its log has."""
    line = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    with suppress(ValueError, AttributeError):
        said = json.loads(line)
        line = ": ".join(str(said[key]) for key in ("event", "reason") if key in said) or line
    return line[:300]
