"""One container of the service, confined as in production."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from tests.containers.engine import CommandFailed, Engine

CONFINED = (
    "--read-only",
    "--tmpfs",
    "/tmp:size=64m",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges:true",
    "--memory",
    "1g",
)
PATIENCE_S = 120
PAIR = {"prompt": "What is 2 + 2?", "response_a": "2 + 2 = 4.", "response_b": "2 + 2 = 5."}


@dataclass(frozen=True)
class Container:
    """A running service.

    client: on the published port.
    """

    engine: Engine
    name: str
    client: httpx.Client

    def execute(self, *command: str) -> str:
        return self.engine.docker("exec", self.name, *command)

    def state(self) -> dict[str, Any]:
        return dict(self.engine.inspect(self.name)["State"])


@contextmanager
def running(engine: Engine, image: str, *options: str) -> Iterator[Container]:
    """Run a service until it is ready. It is removed at the end."""
    name = engine.docker("run", "--detach", "--publish", "127.0.0.1::8000", *CONFINED, *options, image).strip()
    try:
        address = engine.docker("port", name, "8000").strip()
        with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S, trust_env=False) as client:
            wait_until(lambda: answers(client, "/readyz"), f"{image} is ready", pause_s=0.02)
            yield Container(engine, name, client)
    finally:
        engine.docker("rm", "--force", name)


def answers(client: httpx.Client, path: str) -> bool:
    with suppress(httpx.TransportError):
        return client.get(path, timeout=2).status_code == 200
    return False


def fails(engine: Engine, *arguments: str) -> str:
    """Return the output of a docker command that must fail."""
    try:
        engine.docker(*arguments)
    except CommandFailed as error:
        return str(error)
    raise AssertionError(f"docker {' '.join(arguments)} should have failed")


def wait_until(condition: Callable[[], bool], what: str, pause_s: float = 0.5, limit_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(pause_s)
