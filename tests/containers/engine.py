"""A container engine for the tests: Debian's dockerd in a folder, with base images made on this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY

STANDINS = Path(__file__).parent / "standins"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
# Debian's: a client of another version, earlier on the path, may not work with this engine.
DOCKER, COMPOSE, ENGINE = "/usr/bin/docker", "/usr/bin/docker-compose", "/usr/sbin/dockerd"
IP = "/usr/sbin/ip"
OTHERS = Path("/var/run/docker.sock")
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
# Builds download; everything else is much faster.
PATIENCE_S = 600


class CommandFailed(Exception):
    """A docker command failed. The message has its output."""


def missing() -> str | None:
    """Return why no engine can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a container engine needs root"
    needed = [DOCKER, COMPOSE, ENGINE, "/usr/bin/mmdebstrap", "/usr/sbin/iptables", IP]
    absent = [Path(program).name for program in needed if not Path(program).is_file()]
    if _answers(OTHERS):
        return "another container engine runs here, and a second one would take its network"
    return f"not installed: {', '.join(absent)}; `.ci/apt.sh` installs them" if absent else None


@dataclass(frozen=True)
class Engine:
    """The commands of its clients.

    folder: for everything that it keeps.
    """

    folder: Path

    def docker(self, *arguments: str, **environment: str) -> str:
        """Return its standard output. Raises CommandFailed."""
        return self._run([DOCKER, *arguments], environment)

    def compose(self, *arguments: str, **environment: str) -> str:
        """Run `docker compose` in the repository. Raises CommandFailed."""
        return self._run([COMPOSE, *arguments], environment)

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self.docker("inspect", name))
        return dict(found)

    @contextmanager
    def events(self) -> Iterator[Callable[[], list[tuple[str, str]]]]:
        """Note what happens to containers meanwhile. What is yielded returns it: services of Compose, with what it was.

        A container keeps the results of its last five checks only.
        """
        file = self.folder / "events"
        command = [DOCKER, "events", "--since", str(int(time.time())), "--filter", "type=container"]
        command += ["--format", '{{index .Actor.Attributes "com.docker.compose.service"}},{{.Status}}']
        with file.open("wb") as output:
            process = subprocess.Popen(command, env=self.environment(), stdout=output)
        try:
            yield lambda: [tuple(line.split(",", 1)) for line in file.read_text().splitlines()]  # type: ignore[misc]
        finally:
            process.terminate()
            process.wait()

    def build(self, folder: Path, tag: str, *options: str) -> None:
        self.docker("build", "--quiet", "--tag", tag, *options, str(folder))

    def environment(self) -> dict[str, str]:
        """Return our environment without settings of the service."""
        inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("TINYRM_")}
        return inherited | {
            "DOCKER_HOST": f"unix://{self.folder}/docker.sock",
            "DOCKER_CONFIG": str(self.folder / "client"),
            "DOCKER_BUILDKIT": "1",
            "COMPOSE_DOCKER_CLI_BUILD": "1",
            "COMPOSE_PROJECT_NAME": "stack",
            "PATH": f"/usr/bin:{os.environ['PATH']}",
        }

    def _run(self, command: list[str], environment: Mapping[str, str]) -> str:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self.environment() | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        if done.returncode != 0:
            raise CommandFailed(
                f"{' '.join(command[:4])}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
            )
        return done.stdout


@contextmanager
def started(folder: Path) -> Iterator[Engine]:
    """Run an engine that answers. It ends in any case, with its mounts and its network."""
    engine = Engine(folder)
    with _network_restored(), (folder / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                ENGINE,
                "--data-root",
                folder / "data",
                "--exec-root",
                folder / "run",
                "--pidfile",
                folder / "dockerd.pid",
                "--host",
                f"unix://{folder}/docker.sock",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            _wait_until_it_answers(engine, daemon)
            yield engine
        finally:
            daemon.terminate()
            daemon.wait(60)
            subprocess.run(["umount", folder / "run/netns/default"], capture_output=True, check=False)


@contextmanager
def _network_restored() -> Iterator[None]:
    """Remove the bridge and the rules that an engine leaves behind."""
    rules = subprocess.run(["iptables-save"], capture_output=True, check=True).stdout
    try:
        yield
    finally:
        subprocess.run([IP, "link", "delete", "docker0"], capture_output=True, check=False)
        subprocess.run(["iptables-restore"], input=rules, capture_output=True, check=True)


def _wait_until_it_answers(engine: Engine, daemon: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and daemon.poll() is None:
        with suppress(CommandFailed):
            engine.docker("info")
            return
        time.sleep(0.1)
    raise CommandFailed(f"dockerd does not answer\n{(engine.folder / 'dockerd.log').read_text()[-4000:]}")


def _answers(sock: Path) -> bool:
    """Return whether an engine listens there."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(str(sock))
        return True
    return False


def make_base_images(engine: Engine) -> None:
    """Make images with the names in the Dockerfile and docker-compose.yml, so that both are used as they are."""
    rootfs = engine.folder / "rootfs.tar"
    if not rootfs.exists():
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm", rootfs]
        subprocess.run(command, check=True, timeout=PATIENCE_S, env=os.environ | {"TMPDIR": str(engine.folder)})
    engine.docker("import", str(rootfs), "standin/rootfs")
    for standin, tag in {"python": python_image(), **monitoring_images()}.items():
        context = engine.folder / "standins" / standin
        shutil.copytree(STANDINS / standin, context, dirs_exist_ok=True)
        shutil.copy(AUTHORITIES, context)
        engine.build(context, tag)


def python_image() -> str:
    """Return the default of the Dockerfile."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert found, "the Dockerfile names no base image"
    return found[1]


def monitoring_images() -> dict[str, str]:
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    return {name: services[name]["image"] for name in ("prometheus", "alertmanager", "grafana")}
