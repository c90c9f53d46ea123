"""OpenTelemetry: one trace per request, with its stages as spans. The SDK is imported only if a collector is set.

OpenTelemetry's own ASGI middleware records queries, paths, addresses and user agents; this one records no text of a
client.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from service.http.access_log import get_endpoint, get_method
from service.http.context import get_context
from service.settings import PREFIX
from tinyrm import __version__
from tinyrm.errors import InvalidSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

# A collector that does not reply delays the exporter's thread and a shutdown by at most this.
EXPORT_TIMEOUT_S = 5
STAGES_IN_ORDER = ("encode", "queue", "run")


def require_opentelemetry() -> None:
    """Raise InvalidSettings without the `otel` extra."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401  # imported only to see whether it is installed
    except ImportError as error:
        raise InvalidSettings(
            f"{PREFIX}OTLP_ENDPOINT needs the otel extra: pip install '.[serve,otel]' ({error})"
        ) from error


class Tracing:
    """Exports spans to a collector from its own thread. Raises InvalidSettings without the `otel` extra.

    The SDK's variables (OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_...) apply.
    """

    def __init__(self, endpoint: str) -> None:
        require_opentelemetry()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "tinyrm"}
        resource = Resource.create({**name, "service.version": __version__})
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer: Tracer = self._provider.get_tracer("tinyrm", __version__)

    async def close(self) -> None:
        """Send the remaining spans."""
        await asyncio.get_running_loop().run_in_executor(None, self._provider.shutdown)


class TracingMiddleware:
    """Records one server span per request, a child of the caller's `traceparent` if there is one.

    paths: path templates that a span may name.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer, paths: AbstractSet[str]) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app = app
        self.tracer = tracer
        self.paths = paths
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry.trace import SpanKind

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        parent = self._propagator.extract(Headers(scope=scope))
        span = self.tracer.start_span("request", context=parent, kind=SpanKind.SERVER)
        bind_contextvars(trace_id=f"{span.get_span_context().trace_id:032x}")
        try:
            await self.app(scope, receive, send)
        finally:
            self._end(span, scope)

    def _end(self, span: Span, scope: Scope) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        method, endpoint = get_method(scope), get_endpoint(scope, self.paths)
        stats = get_context(scope).stats
        span.update_name(f"{method} {endpoint}")
        # Names of OpenTelemetry's conventions where they exist; no content of the request.
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "http.route": endpoint,
            "http.response.status_code": stats.status,
            "tinyrm.items": stats.items,
            "tinyrm.tokens": stats.tokens,
        }
        span.set_attributes(attributes)
        if stats.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if stats.stages:
            # Of the slowest comparison. The durations are known only now, so its begin follows from its end.
            context = set_span_in_context(span)
            begin = stats.ended_ns - int(stats.stages["total"] * 1e9)
            for stage in STAGES_IN_ORDER:
                end = begin + int(stats.stages[stage] * 1e9)
                self.tracer.start_span(stage, context=context, start_time=begin).end(end)
                begin = end
        span.end()
