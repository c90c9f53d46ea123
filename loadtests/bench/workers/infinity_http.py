"""infinity_emb (torch) serving a cross-encoder, timed at its HTTP client."""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from loadtests.bench.workers.protocol import Call, Prepare, Request, arguments, serve
from loadtests.bench.workers.serving import Server, free_port, post


def start(
    model: Path,
    python: Path = Path(sys.executable),
    log: Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Server:
    """Start `infinity_emb v2` on a free local port.

    python: of the environment that has it.
    log, environment: as a Server takes them.
    """
    port = free_port()
    options = {
        "model-id": model,
        "served-model-name": "bench",
        "engine": "torch",
        "device": "cpu",
        "dtype": "float32",
        "host": "127.0.0.1",
        "port": port,
        "log-level": "warning",
    }
    command = [str(python.with_name("infinity_emb")), "v2"]
    command += ["--no-compile", "--no-bettertransformer", "--no-model-warmup"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return Server(command, {**environment, **quiet}, port, "/health", log)


def main() -> int:
    options, running = arguments(__doc__), ExitStack()

    def load() -> tuple[Prepare, str]:
        server = start(options.model)
        running.callback(server.close)
        server.wait()
        connection = server.connect()

        def prepare(request: Request) -> Call:
            # The server hangs up on a connection that was idle while the others had their turns.
            connection.close()
            connection.connect()
            body = {"model": "bench", "query": request["prompt"], "documents": request["responses"], "raw_scores": True}
            encoded = json.dumps(body).encode()

            def call() -> list[list[float]]:
                results = post(connection, "/rerank", encoded)["results"]
                return [[result["relevance_score"]] for result in sorted(results, key=lambda result: result["index"])]

            return call

        return prepare, f"infinity_emb {version('infinity_emb')}, torch {version('torch')}, over HTTP"

    with running:
        return serve("infinity", load)


if __name__ == "__main__":
    sys.exit(main())
