"""infinity_emb (torch) serving a sequence classifier of the same geometry, timed at its HTTP client."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path

from loadtests.bench.workers.protocol import Call, Prepare, Texts, arguments, serve

START_TIMEOUT_S = 180
RUN_TIMEOUT_S = 600


class Server:
    """`infinity_emb v2` on a free local port; `close` ends it.

    python: of the environment that has it.
    """

    def __init__(self, model: Path, python: Path = Path(sys.executable)) -> None:
        self.port = free_port()
        options = {
            "model-id": model,
            "served-model-name": "bench",
            "engine": "torch",
            "device": "cpu",
            "dtype": "float32",
            "host": "127.0.0.1",
            "port": self.port,
            "log-level": "warning",
        }
        command = [str(python.with_name("infinity_emb")), "v2"]
        command += ["--no-compile", "--no-bettertransformer", "--no-model-warmup"]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        self._popen = subprocess.Popen(  # noqa: S603  # the command above
            command, env=os.environ | quiet, stdin=subprocess.DEVNULL
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait(self) -> None:
        """Wait until it responds. Raises RuntimeError if it exits or does not start in time."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                raise RuntimeError(f"the server exited with {self._popen.returncode}; see its log")
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                connection.request("GET", "/health")
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the server did not start within {START_TIMEOUT_S} s")

    def close(self) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()


def classify(connection: http.client.HTTPConnection, body: bytes) -> None:
    """Send one request. Raises RuntimeError with the reply unless it succeeds."""
    connection.request("POST", "/classify", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{reply.status}: {text[:200]!r}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    options, running = arguments(__doc__), ExitStack()

    def load() -> tuple[Prepare, str]:
        from transformers import AutoTokenizer

        server = Server(options.model)
        running.callback(server.close)
        texts = Texts(AutoTokenizer.from_pretrained(options.model, local_files_only=True))
        server.wait()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=RUN_TIMEOUT_S)

        def prepare(ids: list[list[int]], mask: list[list[int]]) -> Call:
            del ids  # other tokens of the same number: the time does not depend on which
            # The server hangs up on a connection that was idle while the others had their turns.
            connection.close()
            connection.connect()
            body = json.dumps({"model": "bench", "input": [texts.single(sum(row)) for row in mask]}).encode()
            return lambda: classify(connection, body)

        return prepare, f"infinity_emb {version('infinity_emb')}, torch {version('torch')}, over HTTP"

    with running:
        return serve("infinity", load)


if __name__ == "__main__":
    sys.exit(main())
