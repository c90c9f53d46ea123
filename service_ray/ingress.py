"""The entry point: check keys and sizes, and forward each request unchanged to a replica.

It neither parses nor encodes: during the rollout of a new bundle there are replicas of two bundles, and each must
encode a request with its own tokenizer and limits.
"""

import asyncio

import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from ray import exceptions as ray_errors
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.app import overload_status
from service.errors import error_response, get_status, internal_error_response
from service.http.access_log import get_request_id
from service.http.context import get_context
from service.http.stack import build_stack
from service.logs import configure
from service.metrics import ENDPOINT_BY_PATH
from service_ray.asgi import RawReply, RawRequest, collect_reply
from service_ray.config import RayConfig, make_settings
from service_ray.limits import WaitLimits
from service_ray.metrics import Refusals, label_page, merge_pages
from tinyrm.api import ErrorBody
from tinyrm.errors import Overloaded, TinyRMError, Unavailable

log = structlog.get_logger("tinyrm.ingress")

REQUEST_ID = b"x-request-id"
# If its replica is lost, a request is sent to another one: scoring has no side effects, so it may run twice.
LOST = (
    ray_errors.RayActorError,
    ray_errors.ObjectLostError,
    ray_errors.WorkerCrashedError,
    ray_errors.NodeDiedError,
)
# Serve notices a lost replica a moment later; without a pause it would choose that one again.
PAUSE_S = 0.2
RETRY_AFTER_S = "1"
# Below the ten seconds that Prometheus allows for a scrape by default.
METRICS_TIMEOUT_S = 8.0


class Ingress:
    """Receives requests, one instance on each node with a proxy.

    replicas: handle of the deployment that scores.
    """

    def __init__(self, config: RayConfig, replicas: DeploymentHandle) -> None:
        self._settings = make_settings(config.settings)
        configure(self._settings.log_level, self._settings.log_format)
        self._max_tries = config.max_tries
        self._replicas = replicas
        self._refusals = Refusals()
        # As in the service: requests without a key and large bodies do not reach a replica.
        self._app = build_stack(
            self._handle,
            self._settings,
            paths=frozenset(),
            observe=self._observe,
            overload_status=overload_status(self._settings),
            is_logged=False,
            has_connections=False,
        )

    async def __call__(self, request: Request) -> Response:
        scope = request.scope
        scope["state"] = {}  # without Serve's own state
        # One id for every attempt and log line, even if the client's own id is not safe to log.
        others = [(name, value) for name, value in scope["headers"] if name != REQUEST_ID]
        scope["headers"] = [*others, (REQUEST_ID, get_request_id(scope).encode())]
        response = to_response(await collect_reply(self._app, scope, request.receive))
        del response.headers["x-request-id"]  # Serve's proxy adds the client's id, or its own
        return response

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log a request without a reply from a replica; replicas count and log the others."""
        if not get_context(scope).is_forwarded:
            endpoint = ENDPOINT_BY_PATH.get(scope["path"], "other")
            self._refusals.observe(endpoint, status)
            log.info("not handed on", endpoint=endpoint, status=status, duration_s=round(seconds, 6))

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply to a request that passed the middleware; the innermost ASGI application."""
        try:
            response = to_response(await self._forward(scope, receive))
            get_context(scope).is_forwarded = True
        except TinyRMError as error:
            is_overload = isinstance(error, Overloaded)
            status = overload_status(self._settings)(scope["path"]) if is_overload else get_status(error)
            response = error_response(status, ErrorBody.of(error), {"Retry-After": RETRY_AFTER_S})
        except Exception as error:
            log.exception("failed")
            response = await internal_error_response(Request(scope), error)
        await response(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive) -> RawReply:
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            return await self._metrics()
        if scope["path"].startswith("/admin/"):
            # A replica that reloads alone would serve another revision than the others.
            message = "on Ray, `serve deploy` changes the bundle, for all replicas"
            reply = error_response(404, ErrorBody(type="not_found", message=message))
            return RawReply(reply.status_code, list(reply.raw_headers), bytes(reply.body))
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        limits = WaitLimits.parse(scope["headers"], self._settings.max_wait_s, get_context(scope).started_s)
        client = tuple(scope["client"]) if scope.get("client") else None
        for attempt in range(self._max_tries):
            await asyncio.sleep(PAUSE_S * attempt)
            headers = limits.update_headers(scope["headers"])
            request = RawRequest(scope["method"], scope["path"], scope["query_string"], headers, body, client)
            try:
                return await self._call_replica(request, limits)
            except LOST as error:
                log.warning("replica lost", attempt=attempt + 1, kind=type(error).__name__)
        raise Unavailable(f"{self._max_tries} replicas were lost one after the other before they replied")

    async def _call_replica(self, request: RawRequest, limits: WaitLimits) -> RawReply:
        """Return a replica's reply. Raises one of LOST if it is lost, a kind of Unavailable if none is free in time."""
        response: DeploymentResponse = self._replicas.call.remote(request)
        try:
            # Without a limit, Serve waits until a replica is free, or exists at all.
            async with asyncio.timeout(limits.replica_s()) as timeout:
                # The only use of Ray's private API: a @DeveloperAPI with a private name. tests/ray/test_parts.py
                # checks that it exists.
                running = await response._to_object_ref()  # noqa: SLF001
                left_s = limits.reply.left_s()
                timeout.reschedule(None if left_s is None else asyncio.get_running_loop().time() + left_s)
                return RawReply(*await running)
        except (TimeoutError, asyncio.CancelledError) as error:
            response.cancel()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise limits.error() from None
        except BackPressureError:
            raise Overloaded("too many requests wait for a replica; retry after Retry-After") from None
        except DeploymentUnavailableError:
            raise Unavailable("there are no replicas; the application could not be deployed") from None

    async def _metrics(self) -> RawReply:
        """Return the metrics of all replicas, except lost ones, and the counts of refusals here."""
        try:
            async with asyncio.timeout(METRICS_TIMEOUT_S):
                results = await self._replicas.broadcast("metrics").results_async(return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError) as error:
            raise Unavailable(f"the replicas did not return their metrics: {type(error).__name__}") from error
        pages = [page for page in results if isinstance(page, str)]
        if len(pages) < len(results):
            log.warning("metrics are missing", replicas=len(results) - len(pages))
        if not pages:
            raise Unavailable("no replica returned its metrics")
        own = label_page(self._refusals.expose(), serve.get_replica_context().replica_id.unique_id)
        return RawReply(200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], merge_pages([*pages, own]).encode())


def to_response(reply: RawReply) -> Response:
    response = Response(reply.body, reply.status)
    response.raw_headers = [(name, value) for name, value in reply.headers if name != b"content-length"]
    response.raw_headers.append((b"content-length", str(len(reply.body)).encode()))
    return response
