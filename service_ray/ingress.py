"""What callers speak to: it checks who asks and how much, and hands the request on as it came.

It neither parses nor encodes: while a new bundle is rolled out there are replicas of two, and each has to read a
request with its own tokenizer and its own limits.
"""

import asyncio

import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from ray import exceptions as lost
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.app import overload_status
from service.errors import error_response, get_status
from service.http.access_log import get_request_id
from service.http.context import get_context
from service.http.stack import build_stack
from service.logs import configure
from service.metrics import ENDPOINT_BY_PATH
from service_ray.exposition import Refusals, labelled, merged
from service_ray.hosted import RawReply, RawRequest, collected
from service_ray.options import Options, settings_of
from service_ray.patience import Patience
from tinyrm.api import ErrorBody
from tinyrm.errors import Overloaded, TinyRMError, Unavailable

log = structlog.get_logger("tinyrm.ingress")

REQUEST_ID = b"x-request-id"
# A request whose replica is lost gets another one. Scoring changes nothing, so that it may be done twice.
LOST = (lost.RayActorError, lost.ObjectLostError, lost.WorkerCrashedError, lost.NodeDiedError)
# Serve hears of a lost replica a moment later, and would choose it again.
PAUSE_S = 0.2
RETRY_AFTER_S = "1"
# Below the ten seconds that Prometheus gives a scrape by default.
METRICS_TIMEOUT_S = 8.0


class Ingress:
    """scorers: the replicas."""

    def __init__(self, options: Options, scorers: DeploymentHandle) -> None:
        self._settings = settings_of(options.settings)
        configure(self._settings.log_level, self._settings.log_format)
        self._max_tries = options.max_tries
        self._scorers = scorers
        self._refusals = Refusals()
        # As in the service: requests without a key and large bodies do not reach a replica.
        self._app = build_stack(
            self._answer,
            self._settings,
            paths=frozenset(),
            observe=self._observe,
            overload_status=overload_status(self._settings),
            is_logged=False,
            has_connections=False,
        )

    async def __call__(self, request: Request) -> Response:
        scope = request.scope
        scope["state"] = {}  # not Serve's
        # One id for every try and every log line, also where the caller's own is none that may stand in a log.
        others = [(name, value) for name, value in scope["headers"] if name != REQUEST_ID]
        scope["headers"] = [*others, (REQUEST_ID, get_request_id(scope).encode())]
        response = as_response(await collected(self._app, scope, request.receive))
        del response.headers["x-request-id"]  # Serve's proxy adds the caller's, or the one that it made
        return response

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        """What a replica answered, it has counted and logged itself."""
        if not get_context(scope).is_forwarded:
            endpoint = ENDPOINT_BY_PATH.get(scope["path"], "other")
            self._refusals.observe(endpoint, status)
            log.info("not handed on", endpoint=endpoint, status=status, duration_s=round(seconds, 6))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application: the request that came through the door, answered by a replica."""
        try:
            response = as_response(await self._handed_on(scope, receive))
            get_context(scope).is_forwarded = True
        except TinyRMError as error:
            response = self._refusal(error, scope["path"])
        except Exception:
            log.exception("failed")
            unexpected = ErrorBody(type="internal_error", message="an unexpected error; the log has the details")
            response = error_response(500, unexpected)
        await response(scope, receive, send)

    def _refusal(self, error: TinyRMError, path: str) -> Response:
        is_overload = isinstance(error, Overloaded)
        status = overload_status(self._settings)(path) if is_overload else get_status(error)
        return error_response(status, ErrorBody.of(error), {"Retry-After": RETRY_AFTER_S})

    async def _handed_on(self, scope: Scope, receive: Receive) -> RawReply:
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            return await self._metrics()
        if scope["path"].startswith("/admin/"):
            return elsewhere()
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        patience = Patience.of(scope["headers"], self._settings.max_wait_s, get_context(scope).started)
        for attempt in range(self._max_tries):
            await asyncio.sleep(PAUSE_S * attempt)
            headers = patience.passed_on(scope["headers"])
            client = tuple(scope["client"]) if scope.get("client") else None
            try:
                return await self._ask(
                    RawRequest(scope["method"], scope["path"], scope["query_string"], headers, body, client), patience
                )
            except LOST as error:
                log.warning("replica lost", attempt=attempt + 1, kind=type(error).__name__)
        raise Unavailable(f"{self._max_tries} replicas were lost, one after the other, before they had answered")

    async def _ask(self, request: RawRequest, patience: Patience) -> RawReply:
        """Raises one of LOST if the replica is lost, Unavailable and its kinds if there is none in time."""
        response: DeploymentResponse = self._scorers.answer.remote(request)
        try:
            # Serve waits for ever for a replica that is free, or that there is one at all.
            async with asyncio.timeout(patience.wait_s()) as clock:
                running = await response._to_object_ref()  # noqa: SLF001 - a @DeveloperAPI, under this name
                left_s = patience.left_s()
                clock.reschedule(None if left_s is None else asyncio.get_running_loop().time() + left_s)
                return RawReply(*await running)
        except (TimeoutError, asyncio.CancelledError) as error:
            response.cancel()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise patience.over() from None
        except BackPressureError:
            raise Overloaded("too many requests wait for a replica; retry after Retry-After") from None
        except DeploymentUnavailableError:
            raise Unavailable("there is no replica; the application could not be deployed") from None

    async def _metrics(self) -> RawReply:
        """Of all replicas, and what was refused here. One that is lost meanwhile is left out."""
        try:
            async with asyncio.timeout(METRICS_TIMEOUT_S):
                told = await self._scorers.broadcast("metrics").results_async(return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError) as error:
            raise Unavailable(f"the replicas did not tell their metrics: {type(error).__name__}") from error
        pages = [page for page in told if isinstance(page, str)]
        if len(pages) < len(told):
            log.warning("metrics are missing", replicas=len(told) - len(pages))
        if not pages:
            raise Unavailable("no replica told its metrics")
        own = labelled(self._refusals.expose(), serve.get_replica_context().replica_id.unique_id)
        return RawReply(200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], merged([*pages, own]).encode())


def elsewhere() -> RawReply:
    """A replica that reloaded would answer otherwise than the others."""
    message = "on Ray another bundle is served by `serve deploy`, which gives it to all replicas"
    reply = error_response(404, ErrorBody(type="not_found", message=message))
    return RawReply(reply.status_code, list(reply.raw_headers), bytes(reply.body))


def as_response(reply: RawReply) -> Response:
    response = Response(reply.body, reply.status)
    response.raw_headers = [(name, value) for name, value in reply.headers if name != b"content-length"]
    response.raw_headers.append((b"content-length", str(len(reply.body)).encode()))
    return response
