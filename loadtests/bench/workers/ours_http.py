"""TinyRM's service over HTTP, timed at its client. Runs in .venv/dev."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from loadtests.bench.workers.protocol import Call, Prepare, Request, arguments, serve
from loadtests.bench.workers.serving import Server, free_port, post
from tinyrm import __version__

# By the name of what is timed: the path, and the body of a request.
ROUTES: dict[str, tuple[str, Callable[[str, list[str]], dict[str, Any]]]] = {
    "score": ("/v1/score", lambda prompt, responses: {"prompt": prompt, "responses": responses}),
    "rank": ("/v1/rank", lambda prompt, responses: {"prompt": prompt, "responses": responses}),
    # One sample, as the trainer sends it: the whole text, and the prompt that it begins with.
    "openrlhf": ("/get_reward", lambda prompt, responses: {"query": [f"{prompt}{responses[0]}"], "prompts": [prompt]}),
}


def main() -> int:
    options, running = arguments(__doc__), ExitStack()
    path, body_of = ROUTES[options.call]

    def load() -> tuple[Prepare, str]:
        port = free_port()
        settings = {
            "model": options.model,
            "engine": options.engine,
            "precision": options.precision,
            "threads": options.threads,
            "port": port,
            "dialects": "openrlhf",
            # A group of 16 is 240 sequences for a model that reads pairs.
            "max_wait_s": 600,
            "log_level": "warning",
        }
        environment = {f"TINYRM_{name.upper()}": str(value) for name, value in settings.items()}
        server = Server([sys.executable, "-m", "service"], environment, port, "/readyz")
        running.callback(server.close)
        server.wait()
        connection = server.connect()

        def prepare(request: Request) -> Call:
            # The server hangs up on a connection that was idle while the others had their turns.
            connection.close()
            connection.connect()
            body = json.dumps(body_of(request["prompt"], request["responses"])).encode()

            def call() -> list[list[float]] | None:
                reply = post(connection, path, body)
                return [[result["raw"]] for result in reply["results"]] if options.call == "score" else None

            return call

        return prepare, f"tinyrm {__version__}, {options.engine}, over HTTP"

    with running:
        return serve("ours-http", load)


if __name__ == "__main__":
    sys.exit(main())
