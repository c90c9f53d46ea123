"""The client and the loops: a reply, no reply and a closed port are three different outcomes."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from loadtests import wire
from loadtests.traffic import Tally, background, closed_loop, open_loop
from loadtests.wire import Client, NoAnswer, Reply, Unconnected, request
from tests.support.processes import free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Seen: yes\r\n\r\nhi"
GET = request("/", method="GET")
Scenario = Callable[[Client, list[int]], Awaitable[object]]


def against(answer: bytes | None, scenario: Scenario, *, delay_s: float = 0, **options: object) -> object:
    """Run a scenario against a server that sends `answer` to every request; None: it closes the connection."""
    accepted = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted[0] += 1
        while answer is not None and await reader.read(65536):
            await asyncio.sleep(delay_s)
            writer.write(answer)
        if answer is None:
            await reader.read(10)
        writer.close()

    async def run() -> object:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            client = Client(port, **options)  # type: ignore[arg-type]
            found = await scenario(client, accepted)
            client.close()
        return found

    return uvloop.run(run())


async def send(client: Client, _: list[int]) -> Reply:
    return await client.send(GET)


def test_reply_has_status_headers_and_body() -> None:
    reply = against(OK, send)
    assert isinstance(reply, Reply)
    assert (reply.status, reply.headers["x-seen"], reply.body) == (200, "yes", b"hi")


def test_a_connection_that_ends_is_a_loss() -> None:
    with pytest.raises(NoAnswer, match="the connection ended"):
        against(None, send)


def test_a_reply_that_is_not_http_is_a_loss() -> None:
    with pytest.raises(NoAnswer, match="not HTTP"):
        against(b"\x00\x01\x02", send)


def test_silence_is_a_loss() -> None:
    with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s"):
        against(OK, send, delay_s=30, timeout_s=0.2)


def test_a_closed_port_is_unconnected() -> None:
    with pytest.raises(Unconnected):
        uvloop.run(Client(free_port()).send(GET))


def test_an_unconnected_request_is_not_counted_as_sent() -> None:
    tally = Tally()
    uvloop.run(tally.send(Client(free_port()), GET, due=0))
    assert (tally.sent, tally.unconnected, tally.broken()) == (0, 1, [])


@pytest.mark.parametrize(("keep_alive", "connections"), [(True, 1), (False, 3)])
def test_connections_are_kept_if_wanted(keep_alive: bool, connections: int) -> None:
    async def three(client: Client, accepted: list[int]) -> int:
        for _ in range(3):
            await client.send(GET)
        return accepted[0]

    assert against(OK, three, keep_alive=keep_alive) == connections


def test_idle_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def twice(client: Client, accepted: list[int]) -> int:
        await client.send(GET)
        monkeypatch.setattr(wire, "MAX_IDLE_S", 0)
        await client.send(GET)
        return accepted[0]

    assert against(OK, twice) == 2


def test_an_open_loop_does_not_wait_for_replies() -> None:
    """Each reply takes a second: in a closed loop, one caller would send one request."""

    async def flood(client: Client, accepted: list[int]) -> Tally:
        tally = Tally()
        await open_loop(client, [GET], 60, tally, seconds=0.5)
        return tally

    tally = against(OK, flood, delay_s=1)
    assert isinstance(tally, Tally)
    assert tally.sent > 15
    assert tally.answered == tally.sent
    assert min(tally.seconds) > 0.99


def test_a_closed_loop_has_a_fixed_number_of_requests_in_flight() -> None:
    async def loop(client: Client, accepted: list[int]) -> tuple[int, int]:
        tally = await closed_loop(client, [GET], callers=5, seconds=0.3)
        return accepted[0], tally.answered

    connections, answered = against(OK, loop, delay_s=0.01)  # type: ignore[misc]
    assert connections == 5
    assert answered > 5


def test_background_load_is_complete_at_its_end() -> None:
    async def beside(client: Client, accepted: list[int]) -> Tally:
        async with background(client, [GET], 200) as tally:
            await asyncio.sleep(0.2)
        return tally

    tally = against(OK, beside, delay_s=0.3)
    assert isinstance(tally, Tally)
    assert 0 < tally.sent == tally.answered
