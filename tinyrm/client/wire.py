"""From httpx to our errors: what an answer means, and how long a call may still take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

import tinyrm
from tinyrm.api import MAX_TIMEOUT_MS, ErrorBody, ErrorReply
from tinyrm.client.calls import Call
from tinyrm.errors import (
    CallFailed,
    CallRefused,
    CallTimedOut,
    InvalidInput,
    ServiceBusy,
    ServiceFailed,
    ServiceUnreachable,
)

CONNECT_TIMEOUT_S = 5.0  # a host that drops packets leaves time for another try
BUSY = (429, 502, 503, 504)


class Deadline:
    """When a call has to be over, all its tries included."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._ends_at = time.monotonic() + timeout_s

    def left_s(self) -> float:
        return max(0.0, self._ends_at - time.monotonic())

    def header_ms(self) -> int:
        """For X-Request-Timeout-Ms: a little less than is left, for an answer in time has to travel yet."""
        left_s = self.left_s()
        return min(MAX_TIMEOUT_MS, max(1, int(1000 * (left_s - min(0.5, left_s / 10)))))


class Left(dict[str, float]):
    """httpx's `timeout` extension, which bounds each phase by itself: here each gets what the others have left."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def get(self, phase: str, _: Any = None) -> float:
        left_s = max(1e-3, self._deadline.left_s())  # 0 would mean: do not wait at all, not even for what is there
        return min(left_s, CONNECT_TIMEOUT_S) if phase == "connect" else left_s


def base_url_of(text: str) -> str:
    """Raises InvalidInput if that is no address to call."""
    with suppress(ValueError, httpx.InvalidURL):
        httpx.URL(text)  # stricter than urlsplit, which drops a newline at the end
        parts = urlsplit(text)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0):
            return text
    raise InvalidInput(f"base_url: {text!r} is no address; write http://host:port")


def headers_for_all(api_key: str | None) -> dict[str, str]:
    """Raises InvalidInput, without repeating the key, if it cannot stand in a header."""
    headers = {"User-Agent": f"tinyrm/{tinyrm.__version__}", "Content-Type": "application/json"}
    if api_key is None:
        return headers
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise InvalidInput(
            "api_key: has to be one word of ASCII characters, as `python -m service.keys new` printed it"
        )
    return headers | {"Authorization": f"Bearer {api_key}"}


def limits_of(max_connections: int) -> httpx.Limits:
    """All of them stay open: the next call finds one."""
    return httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)


def build(http: httpx.Client | httpx.AsyncClient, call: Call, deadline: Deadline) -> httpx.Request:
    headers = {"X-Request-Id": call.request_id, "X-Request-Timeout-Ms": str(deadline.header_ms())}
    extensions = {"timeout": Left(deadline)}
    return http.build_request(call.method, call.path, content=call.body, headers=headers, extensions=extensions)


@contextmanager
def failures_named(call: Call, deadline: Deadline) -> Iterator[None]:
    """What httpx raises becomes a CallFailed."""
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        if isinstance(error, httpx.ConnectTimeout) and deadline.left_s() > 0:
            raise ServiceUnreachable(
                f"no connection within {CONNECT_TIMEOUT_S:g} s; is the service running there?",
                request_id=call.request_id,
            ) from error
        raise timed_out(call, deadline) from error
    except httpx.TransportError as error:
        raise ServiceUnreachable(
            f"no answer from the service ({error or type(error).__name__}); is it running at that address?",
            request_id=call.request_id,
        ) from error
    except httpx.RequestError as error:
        raise ServiceFailed(
            f"the answer cannot be read: {error}", kind="unexpected_reply", request_id=call.request_id
        ) from error


def timed_out(call: Call, deadline: Deadline) -> CallTimedOut:
    return CallTimedOut(
        f"no answer within {deadline.timeout_s:g} s; ask for less at once or allow more time",
        request_id=call.request_id,
    )


def check(response: httpx.Response, body: bytes, call: Call) -> bytes:
    """The body of an answer that is one. Raises CallFailed of the fitting kind if it is an error."""
    if response.status_code == httpx.codes.OK:
        return body
    error = _error_in(body, response.status_code)
    kind = _kind_of(response.status_code, error.type)
    failure = kind(
        f"{error.message} ({response.status_code} {error.type})",
        kind=error.type,
        status=response.status_code,
        request_id=response.headers.get("X-Request-Id", call.request_id),
    )
    if isinstance(failure, ServiceBusy):
        failure.retry_after_s = _seconds(response.headers.get("Retry-After"))
    raise failure


def _kind_of(status: int, type_: str) -> type[CallFailed]:
    if type_ == "deadline_exceeded":
        return CallTimedOut
    if status in BUSY:
        return ServiceBusy
    return CallRefused if httpx.codes.is_client_error(status) else ServiceFailed


def _error_in(body: bytes, status: int) -> ErrorBody:
    try:
        return ErrorReply.model_validate_json(body).error
    except ValidationError:
        return ErrorBody(type="http_error", message=f"an answer that is not TinyRM's, with status {status}")


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After as seconds; it may be a date (RFC 9110, section 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    with suppress(ValueError):
        at = parsedate_to_datetime(retry_after)
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None
