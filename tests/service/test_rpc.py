"""Test that every call ends with its reply, with the error of the other side, or with the loss of the connection."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.rpc import Connection, Message
from tinyrm.errors import EngineFailed, Overloaded, ShuttingDown

PATIENCE_S = 10


@asynccontextmanager
async def linked(server: Connection, client: Connection) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for side, end in zip((server, client), socket.socketpair(), strict=True):
        await loop.create_connection(lambda side=side: side, sock=end)  # type: ignore[misc]
    async with asyncio.timeout(PATIENCE_S):
        yield
        for side in (server, client):
            side.close()
        await asyncio.gather(server.lost, client.lost)


def echo(_: Connection, head: dict[str, Any], body: bytes) -> Message:
    return {"text": head["text"]}, body[::-1]


async def echo_later(connection: Connection, head: dict[str, Any], body: bytes) -> Message:
    await asyncio.sleep(0)
    return echo(connection, head, body)


@pytest.mark.parametrize("handle", [echo, echo_later])
@settings(max_examples=20, deadline=None)
@given(calls=st.lists(st.tuples(st.text(), st.binary(max_size=100_000)), max_size=8))
def test_each_call_gets_its_own_reply(handle: Any, calls: list[tuple[str, bytes]]) -> None:
    async def scenario() -> None:
        client = Connection()
        async with linked(Connection(handle=handle), client):
            replies = await asyncio.gather(*(client.call({"text": text}, body) for text, body in calls))
        assert [(head["text"], body[::-1]) for head, body in replies] == calls

    asyncio.run(scenario())


def fails(error: Exception) -> Callable[..., Message]:
    def handle(*_: object) -> Message:
        raise error

    return handle


@pytest.mark.parametrize(
    ("error", "expected"),
    [(Overloaded("full"), Overloaded("full")), (ValueError("no device"), EngineFailed("ValueError: no device"))],
)
def test_an_error_keeps_its_type_and_text(error: Exception, expected: Exception) -> None:
    async def scenario() -> None:
        client = Connection()
        async with linked(Connection(handle=fails(error)), client):
            with pytest.raises(type(expected), match=str(expected)):
                await client.call({})

    asyncio.run(scenario())


def test_a_cancelled_call_is_cancelled_on_the_other_side() -> None:
    async def scenario() -> None:
        began, cancelled = asyncio.Event(), asyncio.Event()

        async def handle(*_: object) -> Message:
            began.set()
            try:
                await asyncio.sleep(PATIENCE_S)
            finally:
                cancelled.set()
            return {}, b""

        client = Connection()
        async with linked(Connection(handle=handle), client):
            call = asyncio.create_task(client.call({}))
            await began.wait()
            call.cancel()
            await cancelled.wait()

    asyncio.run(scenario())


def test_a_call_fails_when_the_other_side_leaves_and_so_does_a_later_one() -> None:
    async def scenario() -> None:
        async def handle(connection: Connection, *_: object) -> Message:
            connection.close()
            await asyncio.sleep(PATIENCE_S)
            return {}, b""

        client = Connection()
        async with linked(Connection(handle=handle), client):
            for _ in range(2):
                with pytest.raises(EngineFailed, match="lost"):
                    await client.call({})

    asyncio.run(scenario())


def test_the_owner_decides_what_calls_fail_with() -> None:
    async def scenario() -> None:
        async def handle(*_: object) -> Message:
            client.fail(ShuttingDown("no more"))
            return {}, b""

        client = Connection()
        async with linked(Connection(handle=handle), client):
            with pytest.raises(ShuttingDown, match="no more"):
                await client.call({})

    asyncio.run(scenario())


@pytest.mark.parametrize("head", [{"reply": 4711}, {"reply": 4711, "error": "overloaded", "message": "full"}])
def test_a_reply_to_a_call_that_is_over_is_ignored(head: dict[str, Any]) -> None:
    async def scenario() -> None:
        server, client = Connection(handle=echo), Connection()
        async with linked(server, client):
            server.notify(head)
            assert (await client.call({"text": "still here"}))[0]["text"] == "still here"

    asyncio.run(scenario())


def test_bytes_that_are_not_a_frame_end_the_connection() -> None:
    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        server = Connection(handle=echo)
        ours, theirs = socket.socketpair()
        await asyncio.get_running_loop().create_connection(lambda: server, sock=theirs)
        with ours:
            ours.sendall(b"\x08\0\0\0\x04\0\0\0nope")
            async with asyncio.timeout(PATIENCE_S):
                await server.lost

    asyncio.run(scenario())


class ClosedTransport:
    """A transport that uvloop closed by itself: it is not closing, and a write raises."""

    is_aborted = False

    def is_closing(self) -> bool:
        return False

    def write(self, _: bytes) -> None:
        raise RuntimeError("unable to perform operation on <UnixTransport closed=True>; the handler is closed")

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None: ...


def test_a_notice_on_a_closed_transport_is_dropped() -> None:
    async def scenario() -> None:
        transport = ClosedTransport()
        connection = Connection()
        connection.connection_made(transport)  # type: ignore[arg-type]
        connection.notify({"load": 1})
        assert transport.is_aborted

    asyncio.run(scenario())
