"""The two ways to send a call: with asyncio, and by blocking the thread.

The client is written once, as coroutines over a `Transport`. With the blocking transport these never suspend, so `run`
completes each in one step and without an event loop. It works in a thread that already runs an event loop, and in a
forked process.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx

import tinyrm
from tinyrm.api import MAX_TIMEOUT_MS
from tinyrm.client.calls import Call, check
from tinyrm.deadline import Deadline
from tinyrm.errors import CallTimedOut, InvalidInput, ServiceFailed, ServiceUnreachable

T = TypeVar("T")
Start = Callable[[Coroutine[Any, Any, T]], Awaitable[T]]

CONNECT_TIMEOUT_S = 5.0  # a host that drops packets leaves time for another try


@dataclass(frozen=True, slots=True)
class CallDeadline:
    """The time of a whole call, its repetitions included."""

    timeout_s: float
    at: Deadline

    @classmethod
    def after(cls, timeout_s: float) -> "CallDeadline":
        return cls(timeout_s, Deadline.after(timeout_s))

    def left_s(self) -> float:
        return self.at.left_s() or 0.0

    def header_ms(self) -> int:
        """Return X-Request-Timeout-Ms: a little less than is left, because the response must travel too."""
        left_s = self.left_s()
        return min(MAX_TIMEOUT_MS, max(1, int(1000 * (left_s - min(0.5, left_s / 10)))))

    def httpx_timeouts(self) -> dict[str, float]:
        """Return the timeout of each phase of a request: the time left, at least 1 ms (0 means `do not wait`)."""
        left_s = max(1e-3, self.left_s())
        return {"connect": min(left_s, CONNECT_TIMEOUT_S), "read": left_s, "write": left_s, "pool": left_s}

    def error(self, call: Call) -> CallTimedOut:
        return CallTimedOut(
            f"no response within {self.timeout_s:g} s; send less at once or allow more time", request_id=call.request_id
        )


class Transport(Protocol):
    """How the client sends a call and waits."""

    async def send(self, call: Call, deadline: CallDeadline) -> bytes:
        """Return the body of a successful response. Raises CallFailed."""

    async def sleep(self, seconds: float) -> None: ...

    def tasks(self, limit: int) -> AbstractAsyncContextManager[Start[Any]]:
        """Return a function that starts coroutines, at most `limit` at once; the end of the context cancels them."""

    async def close(self) -> None: ...


class AsyncTransport:
    """Waits in the event loop."""

    def __init__(self, base_url: str, api_key: str | None, max_connections: int) -> None:
        self._http = httpx.AsyncClient(**_http_options(base_url, api_key, max_connections))

    async def send(self, call: Call, deadline: CallDeadline) -> bytes:
        request = _request(self._http, call, deadline, {"timeout": deadline.httpx_timeouts()})
        with _named_failures(call, deadline):
            async with asyncio.timeout(deadline.left_s()):
                response = await self._http.send(request)
        return check(response, response.content, call)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @asynccontextmanager
    async def tasks(self, limit: int) -> AsyncGenerator[Start[Any]]:  # noqa: ARG002 - the caller starts no more
        running: list[asyncio.Task[Any]] = []

        def start(work: Coroutine[Any, Any, T]) -> Awaitable[T]:
            running[:] = [task for task in running if not task.done()]
            running.append(task := asyncio.create_task(work))
            return task

        try:
            yield start
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def close(self) -> None:
        await self._http.aclose()


class BlockingTransport:
    """Waits in the calling thread; its coroutines never suspend. Threads may share one."""

    def __init__(self, base_url: str, api_key: str | None, max_connections: int) -> None:
        self._http = httpx.Client(**_http_options(base_url, api_key, max_connections))

    async def send(self, call: Call, deadline: CallDeadline) -> bytes:
        timeouts = deadline.httpx_timeouts()

        def update(event: str, _info: Any) -> None:
            """Give each phase the time that is left; httpx limits each phase separately."""
            if event.endswith(".started"):
                timeouts.update(deadline.httpx_timeouts())

        request, body = _request(self._http, call, deadline, {"timeout": timeouts, "trace": update}), bytearray()
        with _named_failures(call, deadline), closing(self._http.send(request, stream=True)) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if deadline.at.has_passed:
                    raise deadline.error(call)
        return check(response, bytes(body), call)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - see the module's docstring

    @asynccontextmanager
    async def tasks(self, limit: int) -> AsyncGenerator[Start[Any]]:
        threads = ThreadPoolExecutor(limit, thread_name_prefix="tinyrm-client")
        try:
            yield lambda work: _Finished(threads.submit(run, work))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def close(self) -> None:
        self._http.close()


@dataclass(frozen=True, slots=True)
class _Finished:
    """A thread's result; `await` blocks instead of suspending."""

    future: "Future[Any]"

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()  # a generator, as `await` requires, that never suspends
        return self.future.result()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Complete a coroutine over a blocking transport."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a coroutine of the blocking client suspended")


def _http_options(base_url: str, api_key: str | None, max_connections: int) -> dict[str, Any]:
    """Return the arguments of httpx's clients. Raises InvalidInput for an address or a key that cannot be used."""
    headers = {"User-Agent": f"tinyrm/{tinyrm.__version__}", "Content-Type": "application/json"}
    if api_key is not None:
        if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            # The message does not repeat the key.
            raise InvalidInput("api_key: must be one word of ASCII characters, as `tinyrm keys new` printed it")
        headers["Authorization"] = f"Bearer {api_key}"
    # All connections stay open for the next calls.
    limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
    with suppress(ValueError, httpx.InvalidURL):
        httpx.URL(base_url)  # stricter than urlsplit, which drops a newline at the end
        parts = urlsplit(base_url)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0):
            return {"base_url": base_url, "headers": headers, "limits": limits}
    raise InvalidInput(f"base_url: {base_url!r} is not an address; write http://host:port")


def _request(
    http: httpx.Client | httpx.AsyncClient, call: Call, deadline: CallDeadline, extensions: dict[str, Any]
) -> httpx.Request:
    headers = {"X-Request-Id": call.request_id, "X-Request-Timeout-Ms": str(deadline.header_ms())}
    return http.build_request(call.method, call.path, content=call.body, headers=headers, extensions=extensions)


@contextmanager
def _named_failures(call: Call, deadline: CallDeadline) -> Iterator[None]:
    """Turn what httpx raises into a CallFailed."""
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        if isinstance(error, httpx.ConnectTimeout) and not deadline.at.has_passed:
            raise ServiceUnreachable(
                f"no connection within {CONNECT_TIMEOUT_S:g} s; is the service running there?",
                request_id=call.request_id,
            ) from error
        raise deadline.error(call) from error
    except httpx.TransportError as error:
        raise ServiceUnreachable(
            f"no response from the service ({error or type(error).__name__}); is it running at that address?",
            request_id=call.request_id,
        ) from error
    except httpx.RequestError as error:
        raise ServiceFailed(
            f"the response cannot be read: {error}", kind="unexpected_reply", request_id=call.request_id
        ) from error
