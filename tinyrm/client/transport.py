"""The two ways to send a call: with asyncio, and by blocking the thread.

The client is written once, as coroutines over a `Transport`. With the blocking transport these never suspend, so `run`
completes each in one step and without an event loop. It works in a thread that already runs an event loop.

Connections belong to one process and, with asyncio, to one event loop. A forked process, or another event loop, opens
its own: on a connection that two processes share, each may read the other's reply.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import httpx

from tinyrm.api import MAX_TIMEOUT_MS
from tinyrm.client.address import Address
from tinyrm.client.calls import Call, check, check_request_id, new_request_id
from tinyrm.deadline import Deadline
from tinyrm.errors import CallTimedOut, InvalidInput, ServiceFailed, ServiceUnreachable

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]
Start = Callable[[Work[T]], Awaitable[T]]

CONNECT_TIMEOUT_S = 5.0  # a host that drops packets leaves time for another try
MAX_WAIT_S = 1e6  # of one phase; sockets refuse numbers that are far larger
CLOSED = "the client is closed; open another one"


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
        left_s = min(max(1e-3, self.left_s()), MAX_WAIT_S)
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
        """Return a function that starts work, at most `limit` at once; the end of the context cancels it."""

    async def close(self) -> None: ...


class AsyncTransport:
    """Waits in the event loop. Several event loops, also in several threads, may use one."""

    def __init__(self, base_url: str, api_key: str | None, max_connections: int) -> None:
        self._arguments = (base_url, api_key, max_connections)
        self._address = Address.of(*self._arguments)
        # Process id -> event loop -> connections. Those of another process are kept, and never used: to delete them
        # could touch what both processes share.
        self._pools: dict[int, dict[asyncio.AbstractEventLoop, _Pool]] = {}
        self._is_closed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def _pool(self) -> "_Pool":
        """Return the connections of this event loop in this process. Raises InvalidInput."""
        if self._is_closed:
            raise InvalidInput(CLOSED)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise InvalidInput(
                "AsyncClient needs a running event loop of asyncio or uvloop; elsewhere, use Client"
            ) from error
        pools = self._pools.setdefault(os.getpid(), {})
        if loop not in pools:
            for other in [other for other in list(pools) if other.is_closed()]:
                pools.pop(other, None)
            pools[loop] = _Pool(httpx.AsyncClient(**self._address.options), asyncio.Semaphore(self._arguments[2]))
        return pools[loop]

    async def send(self, call: Call, deadline: CallDeadline) -> bytes:
        pool = self._pool()
        with _named_failures(call, deadline, self._address):
            async with asyncio.timeout(deadline.left_s()), pool.places:
                request = _request(pool.http, call, deadline, {"timeout": deadline.httpx_timeouts()})
                response = await pool.http.send(request, stream=True)
                try:
                    check_request_id(response, call)
                    await response.aread()
                finally:
                    await response.aclose()
        return check(response, response.content, call, self._address.shown)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @asynccontextmanager
    async def tasks(self, limit: int) -> AsyncGenerator[Start[Any]]:  # noqa: ARG002 - the caller starts no more
        running: list[asyncio.Task[Any]] = []

        def start(work: Work[T]) -> Awaitable[T]:
            running[:] = [task for task in running if not task.done()]
            running.append(task := asyncio.create_task(work()))
            return task

        try:
            yield start
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def close(self) -> None:
        self._is_closed = True
        pools = self._pools.pop(os.getpid(), {})
        if pool := pools.get(asyncio.get_running_loop()):
            await pool.http.aclose()


@dataclass(frozen=True, slots=True)
class _Pool:
    """Connections, and a place for each.

    A call waits for its place outside of httpx, whose pool compares all waiting requests with all connections at every
    change: with hundreds of calls, the event loop is blocked for longer than a connection may take to be opened.
    """

    http: httpx.AsyncClient
    places: asyncio.Semaphore


class BlockingTransport:
    """Waits in the calling thread; its coroutines never suspend. Threads may share one."""

    def __init__(self, base_url: str, api_key: str | None, max_connections: int) -> None:
        self._arguments = (base_url, api_key, max_connections)
        self._address = Address.of(*self._arguments)
        # Process id -> connections. Without a lock: another thread of the parent could have held it during the fork.
        self._pools: dict[int, httpx.Client] = {}
        self._is_closed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def _http(self) -> httpx.Client:
        """Return the connections of this process. Raises InvalidInput."""
        if self._is_closed:
            raise InvalidInput(CLOSED)
        pool = self._pools.get(os.getpid())
        return pool or self._pools.setdefault(os.getpid(), httpx.Client(**self._address.options))

    async def send(self, call: Call, deadline: CallDeadline) -> bytes:
        timeouts = deadline.httpx_timeouts()

        def update(event: str, _info: Any) -> None:
            """Give each phase the time that is left; httpx limits each phase separately."""
            if event.endswith(".started"):
                timeouts.update(deadline.httpx_timeouts())

        http = self._http()
        request, body = _request(http, call, deadline, {"timeout": timeouts, "trace": update}), bytearray()
        with (
            _named_failures(call, deadline, self._address),
            closing(http.send(request, stream=True)) as response,
        ):
            check_request_id(response, call)
            for chunk in response.iter_bytes():
                body += chunk
                if deadline.at.has_passed:
                    raise deadline.error(call)
        return check(response, bytes(body), call, self._address.shown)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - see the module's docstring

    @asynccontextmanager
    async def tasks(self, limit: int) -> AsyncGenerator[Start[Any]]:
        threads = ThreadPoolExecutor(limit, thread_name_prefix="tinyrm-client")
        try:
            yield lambda work: _Finished(threads.submit(lambda: run(work())))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def close(self) -> None:
        self._is_closed = True
        if pool := self._pools.pop(os.getpid(), None):
            pool.close()


@dataclass(frozen=True, slots=True)
class _Finished:
    """A thread's result; `await` blocks instead of suspending."""

    future: "Future[Any]"
    process_id: int = field(default_factory=os.getpid)

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()  # a generator, as `await` requires, that never suspends
        if self.process_id != os.getpid():
            raise InvalidInput("this list was begun before the process was forked; the threads are in the parent")
        return self.future.result()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Complete a coroutine over a blocking transport."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a coroutine of the blocking client suspended")


def _request(
    http: httpx.Client | httpx.AsyncClient, call: Call, deadline: CallDeadline, extensions: dict[str, Any]
) -> httpx.Request:
    headers = {
        "X-Request-Id": call.request_id,
        "X-Call-Id": new_request_id(),
        "X-Request-Timeout-Ms": str(deadline.header_ms()),
    }
    return http.build_request(call.method, call.path, content=call.body, headers=headers, extensions=extensions)


@contextmanager
def _named_failures(call: Call, deadline: CallDeadline, address: Address) -> Iterator[None]:
    """Turn what httpx raises into a CallFailed."""
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        if isinstance(error, httpx.ConnectTimeout) and not deadline.at.has_passed:
            raise ServiceUnreachable(
                f"no connection to the service at {address.shown} within {CONNECT_TIMEOUT_S:g} s; {address.advice}",
                request_id=call.request_id,
            ) from error
        raise deadline.error(call) from error
    except httpx.TransportError as error:
        raise ServiceUnreachable(
            f"no response from the service at {address.shown} ({error or type(error).__name__}); {address.advice}",
            request_id=call.request_id,
        ) from error
    except httpx.RequestError as error:
        raise ServiceFailed(
            f"the response of {address.shown} cannot be read: {error}",
            kind="unexpected_reply",
            request_id=call.request_id,
        ) from error
