"""OpenTelemetry: one trace a request, its stages as spans. Nothing of it is imported unless an endpoint is set.

Starlette has a middleware for this, experimental as yet, which records queries, paths, addresses and user agents; this
one tells nothing that a client wrote.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from service.http.access_log import Notes, endpoint_of, method_of
from service.settings import InvalidSettings
from tinyrm import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

# A collector that does not answer may hold up neither the exporter's thread nor a shutdown for longer.
EXPORT_TIMEOUT_S = 5
STAGES_IN_ORDER = ("encode", "queue", "run")


class Tracing:
    """Sends spans to a collector, from a thread of its own. Raises InvalidSettings without the `otel` extra.

    The SDK's own variables (OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_...) apply.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InvalidSettings(
                f"TINYRM_OTLP_ENDPOINT needs the otel extra: pip install '.[serve,otel]' ({error})"
            ) from error
        name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "tinyrm"}
        resource = Resource.create({**name, "service.version": __version__})
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer: Tracer = self._provider.get_tracer("tinyrm", __version__)

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.get_running_loop().run_in_executor(None, self._provider.shutdown)


class TraceRequests:
    """One server span a request, a child of the caller's `traceparent` if there is one."""

    def __init__(self, app: ASGIApp, tracer: Tracer, paths: AbstractSet[str]) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app = app
        self.tracer = tracer
        self.paths = paths
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        span = self._begun(scope)
        bind_contextvars(trace_id=f"{span.get_span_context().trace_id:032x}")
        try:
            await self.app(scope, receive, send)
        finally:
            self._end(span, scope)

    def _begun(self, scope: Scope) -> Span:
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract(Headers(scope=scope))
        return self.tracer.start_span("request", context=parent, kind=SpanKind.SERVER)

    def _end(self, span: Span, scope: Scope) -> None:
        from opentelemetry.trace import Status, StatusCode

        endpoint, notes = endpoint_of(scope, self.paths), scope["state"]["notes"]
        span.update_name(f"{method_of(scope)} {endpoint}")
        span.set_attributes(_attributes(scope, endpoint, notes))
        if notes.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if notes.stages:
            self._stages(span, notes)
        span.end()

    def _stages(self, request: Span, notes: Notes) -> None:
        """The stages of the comparison that took longest: how long each took is known when it has its answer."""
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(request)
        begin = notes.ended_ns - int(notes.stages["total"] * 1e9)
        for stage in STAGES_IN_ORDER:
            end = begin + int(notes.stages[stage] * 1e9)
            self.tracer.start_span(stage, context=context, start_time=begin).end(end)
            begin = end


def _attributes(scope: Scope, endpoint: str, notes: Notes) -> dict[str, Any]:
    """Named by OpenTelemetry's conventions where it has names. No text of a request."""
    return {
        "http.request.method": method_of(scope),
        "http.route": endpoint,
        "http.response.status_code": notes.status,
        "tinyrm.items": notes.items,
        "tinyrm.tokens": notes.tokens,
    }
