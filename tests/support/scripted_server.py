"""Run an HTTP server on a real socket that follows a script: errors, silence, lost connections."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMPARED = {
    "preferred": "a",
    "probability_a": 0.75,
    "probability_b": 0.25,
    "confidence": "leaning",
    "orders": {"a_first": 0.8, "b_first": 0.7},
    "margin": 1.0986,
    "model": "toy@1",
    "usage": {"sequences": 2, "tokens": 10, "gflops": 0.1},
    "truncated": {"prompt": 0, "response_a": 0, "response_b": 0},
}
USAGE = {"sequences": 1, "tokens": 1, "gflops": 0.1}
RANKED = {
    "order": [1, 0],
    "strengths": [-0.5, 0.5],
    "standard_errors": [0.1, 0.1],
    "cycle_rate": None,
    "win_matrix": None,
    "comparisons": 1,
    "sets": None,
    "model": "toy@1",
    "usage": USAGE,
    "truncated_tokens": 0,
}
# One of GET /v1/models, without its revision.
MODEL_CARD = {
    "name": "toy",
    "default": True,
    "reads": "pair",
    "scores_alone": False,
    "head": "cloze",
    "activation": "identity",
    "score_scale": None,
    "domains": {"general": "Select."},
    "default_domain": "general",
    "template": "figure2",
    "max_tokens": 256,
    "parameters": 9,
    "temperature": 1.0,
    "temperatures": {},
    "engine": "null",
    "precision": "fp32",
}


@dataclass(frozen=True)
class Received:
    """A request as it arrived.

    at_s: on the monotonic clock.
    connection: port of the client; the same for all requests of one connection.
    """

    path: str
    headers: Mapping[str, str]
    body: Any
    at_s: float
    connection: int = 0


Handler = BaseHTTPRequestHandler
Step = Callable[[Handler, Received], None]


@dataclass
class ScriptedServer:
    """script: a step for each request; the last one also handles all later requests."""

    script: list[Step]
    received: list[Received] = field(default_factory=list)
    url: str = ""

    def next_step(self, received: Received) -> Step:
        self.received.append(received)
        return self.script[min(len(self.received), len(self.script)) - 1]


def answer(status: int, body: Any, **headers: str) -> Step:
    def step(handler: Handler, _: Received) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return step


def error(status: int, kind: str, **headers: str) -> Step:
    return answer(status, {"error": {"type": kind, "message": f"this is {kind}"}}, **headers)


def compared() -> Step:
    return answer(200, COMPARED)


def models(*revisions: str) -> Step:
    """Reply to GET /v1/models: models called toy."""
    return answer(200, {"models": [MODEL_CARD | {"revision": revision} for revision in revisions]})


def batch(result_of: Callable[[Any], Any] = lambda item: COMPARED, *, revision: str = "1") -> Step:
    """Reply to POST /v1/compare/batch; and to GET /v1/models, as a service with one model."""

    def step(handler: Handler, received: Received) -> None:
        if received.path.endswith("/v1/models"):
            models(revision)(handler, received)
            return
        answer(200, {"results": [result_of(item) for item in received.body["items"]], "usage": USAGE})(
            handler, received
        )

    return step


def item_error(kind: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": f"this is {kind}"}}


def hang_up(handler: Handler, _: Received) -> None:
    handler.close_connection = True


def stall(handler: Handler, _: Received) -> None:
    """Send no reply: return when the client has closed the connection."""
    with suppress(OSError):
        handler.connection.recv(1)
    handler.close_connection = True


def trickle(handler: Handler, _: Received) -> None:
    """Send single bytes, never the last one, until the client disconnects: no single wait is long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)


@contextmanager
def scripted(*script: Step) -> Iterator[ScriptedServer]:
    server = ScriptedServer(list(script))
    lock = threading.Lock()

    class OneRequest(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(text) if text else None
            received = Received(self.path, dict(self.headers), body, time.monotonic(), self.client_address[1])
            with lock:
                step = server.next_step(received)
            step(self, received)

        do_GET = do_POST  # noqa: N815 - the names are the base class's

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Log nothing: standard error belongs to the tests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), OneRequest) as http:
        http.daemon_threads = True
        http.block_on_close = False
        server.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()
