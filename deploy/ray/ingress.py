"""What callers speak to: it checks who asks and how much, and hands the request on as it came.

It neither parses nor encodes: while a new bundle is rolled out there are replicas of two, and each has to read a
request with its own tokenizer and its own limits.
"""

import asyncio
import time

import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from ray import exceptions as lost
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.ray.exposition import merged
from deploy.ray.hosted import Headers, RawReply, RawRequest, collected
from deploy.ray.options import Options, settings_of
from service.access import Access, request_id_of
from service.app import overload_status_of
from service.auth import KeyRing, RequireKey
from service.errors import body_of, error_response, status_of
from service.headers import Cors, SecurityHeaders
from service.logs import configure
from service.middleware import JsonBodies
from service.settings import Settings, split_list
from tinyrm.errors import DeadlineExceeded, Overloaded, Unavailable

log = structlog.get_logger("tinyrm.ingress")

TIMEOUT_MS = b"x-request-timeout-ms"
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
        self._door = door(self._answer, self._settings)

    async def __call__(self, request: Request) -> Response:
        request.scope.setdefault("state", {})["arrived"] = time.perf_counter()
        response = as_response(await collected(self._door, request.scope, request.receive))
        del response.headers["x-request-id"]  # Serve's proxy puts the same one there
        return response

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application: the request that came through the door, answered by a replica."""
        try:
            reply = as_response(await self._handed_on(scope, receive))
        except Unavailable as error:
            overload = overload_status_of(self._settings)(scope["path"])
            status = overload if isinstance(error, Overloaded) else status_of(error)
            reply = error_response(status, body_of(error), {"Retry-After": RETRY_AFTER_S})
        await reply(scope, receive, send)

    async def _handed_on(self, scope: Scope, receive: Receive) -> RawReply:
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            return await self._metrics()
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        client = scope.get("client")
        for attempt in range(self._max_tries):
            request = RawRequest(
                scope["method"], scope["path"], scope["query_string"], headers_of(scope), body, client and tuple(client)
            )
            try:
                return RawReply(*await self._ask(request))
            except LOST as error:
                log.warning("replica lost", attempt=attempt + 1, kind=type(error).__name__)
                await asyncio.sleep(PAUSE_S * attempt)
        raise Unavailable(f"{self._max_tries} replicas were lost, one after the other, before they had answered")

    async def _ask(self, request: RawRequest) -> RawReply:
        """Raises one of LOST if the replica is lost, Unavailable and its kinds if there is none."""
        response: DeploymentResponse = self._scorers.answer.remote(request)
        try:
            # Serve waits for ever for a replica that is free, or that there is one at all.
            async with asyncio.timeout(self._settings.max_wait_s) as waiting:
                running = await response._to_object_ref()  # noqa: SLF001 - a @DeveloperAPI, under this name
                waiting.reschedule(None)
                return await running
        except TimeoutError:
            response.cancel()
            raise Unavailable(f"no replica was free within {self._settings.max_wait_s:g} s") from None
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError:
            raise Overloaded("too many requests wait for a replica; retry after Retry-After") from None
        except DeploymentUnavailableError:
            raise Unavailable("there is no replica; the application could not be deployed") from None

    async def _metrics(self) -> RawReply:
        """Of all replicas; one that is lost meanwhile is left out."""
        try:
            async with asyncio.timeout(METRICS_TIMEOUT_S):
                told = await self._scorers.broadcast("metrics").results_async(return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError) as error:
            raise Unavailable(f"the replicas did not tell their metrics: {type(error).__name__}") from error
        page = merged(page for page in told if isinstance(page, str))
        return RawReply(200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], page.encode())


def door(inside: ASGIApp, settings: Settings) -> ASGIApp:
    """Around every request, as the service has it: strangers and large bodies do not come as far as a replica."""
    app: ASGIApp = JsonBodies(
        inside,
        max_body_bytes=settings.max_body_bytes,
        max_buffered_bytes=settings.max_buffered_bytes,
        timeout_s=settings.body_timeout_s,
        overload_status=overload_status_of(settings),
    )
    if settings.api_keys_file:
        app = RequireKey(app, keys=KeyRing(settings.api_keys_file))
    if settings.cors_origins:
        app = Cors(app, split_list(settings.cors_origins))
    return Access(SecurityHeaders(app), frozenset(), lambda *_: None, is_logged=False)


def headers_of(scope: Scope) -> Headers:
    """As they came, with the request's id, and with what is left of the time that it gives itself.

    Raises DeadlineExceeded.
    """
    kept = [(name, value) for name, value in scope["headers"] if name not in (TIMEOUT_MS, b"x-request-id")]
    kept.append((b"x-request-id", request_id_of(scope).encode()))
    given = dict(scope["headers"]).get(TIMEOUT_MS)
    if given is None:
        return kept
    if not given.isdigit():
        return [*kept, (TIMEOUT_MS, given)]  # the replica says what is wrong with it
    left_ms = int(given) - round((time.perf_counter() - scope["state"]["arrived"]) * 1e3)
    if left_ms <= 0 < int(given):
        raise DeadlineExceeded("the request's own time was over before a replica had it")
    return [*kept, (TIMEOUT_MS, str(left_ms).encode())]


def as_response(reply: RawReply) -> Response:
    response = Response(reply.body, reply.status)
    response.raw_headers = [(name, value) for name, value in reply.headers if name != b"content-length"]
    response.raw_headers.append((b"content-length", str(len(reply.body)).encode()))
    return response
