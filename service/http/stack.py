"""The middleware around the application, in order."""

from collections.abc import Set as AbstractSet

from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp

from service.errors import OverloadStatus, internal_error_response
from service.http.access_log import AccessLogMiddleware, Observe
from service.http.auth import ApiKeyMiddleware
from service.http.body import BodyLimitMiddleware
from service.http.cancel import CancelOnDisconnect, CutMiddleware
from service.http.connections import ConnectionRefusalMiddleware
from service.http.headers import HeadMiddleware, JsonCorsMiddleware, ReplyHeadersMiddleware
from service.http.tracing import Tracing, TracingMiddleware
from service.keys import KeyRing
from service.settings import Settings, split_list


def build_stack(
    app: ASGIApp,
    settings: Settings,
    *,
    paths: AbstractSet[str],
    observe: Observe,
    overload_status: OverloadStatus,
    is_logged: bool = True,
    tracing: Tracing | None = None,
    has_connections: bool = True,
) -> ASGIApp:
    """Return `app` inside the middleware that the settings enable. Raises InvalidKeys.

    paths: path templates that logs and traces may contain.
    observe: called at the end of each request.
    overload_status: returns the status of a refusal under overload.
    is_logged: whether each request is logged.
    has_connections: whether our own server holds the clients' connections; on Ray, Serve's proxy does.
    """
    # Outermost first: a request passes from top to bottom, its reply from bottom to top.
    layers = [
        Middleware(AccessLogMiddleware, paths, observe, is_logged=is_logged),
        Middleware(ReplyHeadersMiddleware),
    ]
    if has_connections:
        layers.append(Middleware(CutMiddleware))
    if tracing:
        layers.append(Middleware(TracingMiddleware, tracing.tracer, paths))
    if settings.cors_origins:
        layers.append(Middleware(JsonCorsMiddleware, split_list(settings.cors_origins)))
    layers.append(Middleware(HeadMiddleware))
    layers.append(Middleware(ServerErrorMiddleware, handler=internal_error_response))
    if settings.api_keys_file:
        layers.append(Middleware(ApiKeyMiddleware, KeyRing(settings.api_keys_file)))
    layers.append(
        Middleware(
            BodyLimitMiddleware,
            max_body_bytes=settings.max_body_bytes,
            max_buffered_bytes=settings.max_buffered_bytes,
            timeout_s=settings.body_timeout_s,
            overload_status=overload_status,
        )
    )
    if has_connections:
        layers += [Middleware(CancelOnDisconnect), Middleware(ConnectionRefusalMiddleware)]
    for layer in reversed(layers):
        app = layer.cls(app, *layer.args, **layer.kwargs)
    return app
