"""Test traces, as a collector receives them."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.http.tracing import Tracing
from service.settings import Settings
from tests.conftest import REPOSITORY
from tests.service.conftest import PAIR, serve
from tinyrm.errors import InvalidSettings

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the otel extra is not installed")

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER_KIND, ERROR = 2, 2


@dataclass
class Collector:
    """Receive OTLP over HTTP."""

    port: int = 0
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def resources(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return [one for body in self.bodies for one in ExportTraceServiceRequest.FromString(body).resource_spans]

    def spans(self) -> list[Any]:
        return [span for one in self.resources() for scope in one.scope_spans for span in scope.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.paths.append(self.path)
            collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield collector
    server.shutdown()
    server.server_close()


def traced(collector: Collector, bundle_folder: Path) -> Any:
    """Run an application with traces. All spans are sent when it stops, at the end of this context."""
    return serve(Settings(model=bundle_folder, otlp_endpoint=collector.endpoint + "/"))


def attributes(span: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def stage_seconds(reply: Any) -> dict[str, float]:
    entries = (entry.split(";dur=") for entry in reply.headers["Server-Timing"].split(", "))
    return {name: float(milliseconds) / 1e3 for name, milliseconds in entries}


def test_a_comparison_is_a_request_and_its_stages(collector: Collector, bundle_folder: Path) -> None:
    with traced(collector, bundle_folder) as one:
        reply = one.client.post("/v1/compare", json=PAIR | {"prompt": "a private matter"})
    assert set(collector.paths) == {"/v1/traces"}
    spans = {span.name: span for span in collector.spans()}
    request = spans.pop("POST /v1/compare")
    assert list(spans) == ["encode", "queue", "run"]
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/compare",
        "http.response.status_code": 200,
        "tinyrm.items": 1,
        "tinyrm.tokens": reply.json()["usage"]["tokens"],
    }
    assert request.kind == SERVER_KIND
    assert not request.parent_span_id
    seconds, end = stage_seconds(reply), spans["encode"].start_time_unix_nano
    assert request.start_time_unix_nano <= end
    for name, span in spans.items():
        assert (span.parent_span_id, span.trace_id) == (request.span_id, request.trace_id)
        assert span.start_time_unix_nano == end, "one stage begins when the one before ends"
        end = span.end_time_unix_nano
        assert (end - span.start_time_unix_nano) / 1e9 == pytest.approx(seconds[name], abs=2e-6)
    assert end <= request.end_time_unix_nano
    assert not any(b"private" in body for body in collector.bodies)


def test_the_callers_trace_is_continued(collector: Collector, bundle_folder: Path) -> None:
    with traced(collector, bundle_folder) as one:
        one.client.get("/v1/models", headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
        one.client.get("/healthz", headers={"traceparent": "nonsense"})
        one.client.get("/readyz", headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"GET /v1/models", "GET /healthz"}, "the caller of /readyz needs no trace"
    assert spans["GET /v1/models"].trace_id.hex() == TRACE_ID
    assert spans["GET /v1/models"].parent_span_id.hex() == PARENT_ID
    assert spans["GET /healthz"].trace_id.hex() != TRACE_ID


def test_failures_are_marked_and_unknown_paths_are_not_exported(
    collector: Collector, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(collector, bundle_folder) as one:
        monkeypatch.setattr(one.pipeline, "compare", None)
        one.client.post("/v1/compare", json=PAIR)
        one.client.get("/private-words")
    statuses = {
        span.name: (span.status.code, attributes(span)["http.response.status_code"]) for span in collector.spans()
    }
    assert statuses == {"POST /v1/compare": (ERROR, 500), "GET other": (0, 404)}


def test_a_batch_shows_the_stages_of_its_slowest_comparison(collector: Collector, bundle_folder: Path) -> None:
    with traced(collector, bundle_folder) as one:
        one.client.post("/v1/compare/batch", json={"items": [PAIR] * 5})
    names = [span.name for span in collector.spans()]
    assert sorted(names) == ["POST /v1/compare/batch", "encode", "queue", "run"]
    assert [attributes(span)["tinyrm.items"] for span in collector.spans() if "batch" in span.name] == [5]


def test_traces_name_the_service_and_its_version(
    collector: Collector, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(collector, bundle_folder) as one:
        one.client.get("/healthz")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "judge-7")
    with traced(collector, bundle_folder) as one:
        one.client.get("/healthz")
    names = [attributes(entry.resource)["service.name"] for entry in collector.resources()]
    assert names == ["tinyrm", "judge-7"]


@pytest.mark.slow
def test_no_reply_is_lost_without_the_collector(bundle_folder: Path) -> None:
    with serve(Settings(model=bundle_folder, otlp_endpoint="http://127.0.0.1:9")) as one:
        one.compare()


def test_opentelemetry_is_imported_only_if_it_is_configured() -> None:
    """Exclude the light interface, which other libraries import if it is installed."""
    code = (
        "import sys; from service.app import create_app, create_state; from service.settings import Settings;"
        "create_app(create_state(Settings()));"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_missing_extra_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidSettings, match=r"TINYRM_OTLP_ENDPOINT needs the otel extra: pip install"):
        Tracing("http://127.0.0.1:4318")


@pytest.mark.slow
def test_a_missing_extra_is_exit_code_3(bundle_folder: Path, tmp_path: Path) -> None:
    """Hide the installed package by another one, as in an environment without it."""
    hiding = tmp_path / "opentelemetry" / "exporter"
    hiding.mkdir(parents=True)
    (hiding / "__init__.py").write_text("raise ImportError('not here')")
    ours = {"TINYRM_MODEL": str(bundle_folder), "TINYRM_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | ours | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
    )
    assert done.returncode == 3
    assert "needs the otel extra" in done.stderr
    assert "Traceback" not in done.stderr
