"""Test connections that send too much, too slowly or nothing, on a real socket."""

import asyncio
import inspect
import json
import resource
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.app import create_app, create_state
from service.http.connections import (
    HALF_CLOSED_S,
    OTHER_FILES,
    SURPLUS_CONNECTIONS,
    BoundedHttpProtocol,
    ConnectionLimits,
    allow_open_files,
    make_protocol,
    surplus_connections,
)
from service.settings import Settings
from tests.service.conftest import PAIR
from tests.support.waiting import PATIENCE_S, wait_until
from tinyrm.errors import InvalidSettings

HEADER_TIMEOUT_S, BODY_TIMEOUT_S = 0.4, 0.5
MAX_HEADER_BYTES = 4096
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
CONTENT = json.dumps(PAIR).encode()
POST = b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(CONTENT)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def type(self) -> str:
        kind: str = json.loads(self.body)["error"]["type"]
        return kind


@contextmanager
def listening(app: ASGIApp, limits: ConnectionLimits) -> Iterator[int]:
    """Run uvicorn in a thread with these limits; yield its port."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, **limits.uvicorn_options())
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


def limits(max_connections: int = 100) -> ConnectionLimits:
    return ConnectionLimits(max_connections, MAX_HEADER_BYTES, HEADER_TIMEOUT_S, BODY_TIMEOUT_S)


@pytest.fixture(scope="module")
def port(bundle_folder: Path) -> Iterator[int]:
    """Serve the toy with tight limits."""
    settings = Settings(model=bundle_folder, body_timeout_s=BODY_TIMEOUT_S)
    with listening(create_app(create_state(settings)), limits()) as number:
        yield number


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        yield connection


def read(connection: socket.socket) -> Reply:
    """Read one reply, by its length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += _more(connection)
    return Reply(int(status.split()[1]), headers, body)


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    assert data, "closed before the reply was complete"
    return data


def is_closed(connection: socket.socket) -> bool:
    """Wait until the other side closes the connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_connection_serves_one_request_after_the_other(port: int) -> None:
    with connected(port) as connection:
        for _ in range(3):
            connection.sendall(GET + b"\r\n")
            reply = read(connection)
            assert reply.status == 200
            assert "server" not in reply.headers
        connection.sendall(POST + CONTENT)
        assert read(connection).status == 200
        connection.sendall(GET + b"\r\n" + POST + CONTENT + GET + b"\r\n")
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 3:
            received += _more(connection)


def test_an_idle_connection_may_exceed_the_header_timeout(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(GET + b"\r\n")
        read(connection)
        time.sleep(HEADER_TIMEOUT_S + BODY_TIMEOUT_S + 0.3)
        connection.sendall(GET + b"\r\n")
        assert read(connection).status == 200


def test_a_silent_connection_is_closed(port: int) -> None:
    with connected(port) as connection:
        assert connection.recv(1) == b""


@pytest.mark.parametrize("part", [b"G", b"GET /healthz HTTP/1.1\r\n", GET])
@pytest.mark.parametrize("requests_before", [0, 1])
def test_headers_that_never_end_get_a_408_in_time(port: int, part: bytes, requests_before: int) -> None:
    with connected(port) as connection:
        for _ in range(requests_before):
            connection.sendall(GET + b"\r\n")
            read(connection)
        started = time.monotonic()
        connection.sendall(part)
        reply = read(connection)
        assert (reply.status, reply.type) == (408, "header_timeout")
        assert time.monotonic() - started > HEADER_TIMEOUT_S * 0.9
        assert reply.headers["connection"] == "close"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert is_closed(connection)


def trickle(connection: socket.socket, piece: bytes) -> threading.Event:
    """Send a piece every 50 ms until the other side closes."""
    gone = threading.Event()

    def send() -> None:
        while not gone.is_set():
            try:
                connection.sendall(piece)
            except OSError:
                gone.set()
            time.sleep(0.05)

    threading.Thread(target=send, daemon=True).start()
    return gone


def test_headers_that_arrive_slowly_get_no_more_time(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(GET)
        gone = trickle(connection, b"X-A: b\r\n")
        assert gone.wait(PATIENCE_S)


def test_blank_lines_after_a_reply_do_not_keep_a_connection_open(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(GET + b"\r\n")
        read(connection)
        gone = trickle(connection, b"\r\n")
        assert gone.wait(PATIENCE_S)


@pytest.mark.parametrize("sent", [POST, POST + CONTENT[:10]])
def test_a_body_that_does_not_arrive_is_a_408(port: int, sent: bytes) -> None:
    with connected(port) as connection:
        started = time.monotonic()
        connection.sendall(sent)
        reply = read(connection)
        assert (reply.status, reply.type) == (408, "body_timeout")
        assert time.monotonic() - started > BODY_TIMEOUT_S * 0.9
        assert "x-request-id" in reply.headers
        assert is_closed(connection)


def test_a_body_that_arrives_slowly_gets_no_more_time(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(POST.replace(b"%d" % len(CONTENT), b"1000000"))
        trickle(connection, b" ")
        assert (read(connection)).type == "body_timeout"
        assert is_closed(connection)


def test_bodies_together_are_bounded(bundle_folder: Path) -> None:
    most = 2 * len(CONTENT) - 2
    settings = Settings(model=bundle_folder, max_body_bytes=most, max_buffered_bytes=most)
    with (
        listening(create_app(create_state(settings)), limits()) as number,
        connected(number) as early,
        connected(number) as late,
    ):
        early.sendall(POST + CONTENT[:-1])
        time.sleep(0.1)
        for _ in range(2):
            late.sendall(POST + CONTENT)
            reply = read(late)
            assert (reply.status, reply.type, reply.headers["retry-after"]) == (429, "overloaded", "1")
            late.sendall(GET + b"\r\n")
            assert read(late).status == 200, "its connection stays open"
        early.sendall(CONTENT[-1:])
        assert read(early).status == 200
        for connection in (early, late, early):
            connection.sendall(POST + CONTENT)
            assert read(connection).status == 200, "answered ones leave room"


def test_an_endless_body_after_the_reply_ends_the_connection(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(GET + b"Content-Length: 1000000000\r\n\r\n")
        assert read(connection).status == 200
        assert trickle(connection, b"x").wait(PATIENCE_S)


def test_large_headers_are_refused_whole_or_in_parts(port: int) -> None:
    fits, above = MAX_HEADER_BYTES - 200, MAX_HEADER_BYTES
    with connected(port) as connection:
        connection.sendall(GET + b"X-A: " + b"a" * fits + b"\r\n\r\n")
        assert read(connection).status == 200
        connection.sendall(GET + b"X-A: " + b"a" * above + b"\r\n\r\n")
        reply = read(connection)
        assert (reply.status, reply.type) == (431, "headers_too_large")
        assert "x-request-id" in reply.headers
        assert is_closed(connection)


@pytest.mark.parametrize("start", [b"GET /", GET + b"X-", GET + b"X-A: "], ids=["path", "name", "value"])
def test_endless_line_is_refused_soon(port: int, start: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(start)
        time.sleep(0.05)
        connection.sendall(b"a" * (MAX_HEADER_BYTES + 1))
        reply = read(connection)
        assert (reply.status, reply.type) == (431, "headers_too_large")


def test_body_in_many_parts_does_not_count_as_headers(port: int) -> None:
    with connected(port) as connection:
        content = CONTENT + b" " * 20_000
        connection.sendall(POST.replace(b"%d" % len(CONTENT), b"%d" % len(content)))
        for start in range(0, len(content), 2000):
            connection.sendall(content[start : start + 2000])
            time.sleep(0.005)
        assert read(connection).status == 200


def test_a_preceding_body_does_not_count_as_headers(port: int) -> None:
    content = CONTENT + b" " * 20_000
    with connected(port) as connection:
        whole = POST.replace(b"%d" % len(CONTENT), b"%d" % len(content)) + content
        connection.sendall(whole + GET[:10])
        assert read(connection).status == 200
        connection.sendall(GET[10:] + b"\r\n")
        assert read(connection).status == 200


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", GET + b"Content-Length: x\r\n\r\n"])
def test_garbage_gets_a_json_error(port: int, garbage: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(garbage)
        reply = read(connection)
        assert (reply.status, reply.type) == (400, "invalid_http")
        assert "server" not in reply.headers


def test_an_upgrade_is_ignored(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n")
        assert read(connection).status == 200


OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHM=\r\nSec-WebSocket-Version: 13\r\n",
    b"Upgrade: TLS/1.2, anything\r\nconnection: keep-alive, upgrade\r\n",
]
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)


def offering(offer: bytes, *, chunked: bool = False, version: bytes = b"1.1") -> bytes:
    """Return a comparison whose headers offer to upgrade the connection."""
    size = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(CONTENT)
    head = b"POST /v1/compare HTTP/%s\r\nHost: x\r\n%s%s\r\n\r\n" % (version, offer, size)
    return head + (CHUNKED if chunked else CONTENT)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_to_upgrade_does_not_cost_the_body(port: int, offer: bytes, chunked: bool) -> None:
    whole = offering(offer, chunked=chunked)
    ends = {len(whole), whole.index(b"\r\n\r\n") + 4, whole.index(b"Upgrade:") + 9, whole.index(b"\r\n\r\n") + 2}
    with connected(port) as connection:
        for end in sorted(ends):
            connection.sendall(whole[:end])
            time.sleep(0.02 if end < len(whole) else 0)  # so that it arrives in two pieces
            connection.sendall(whole[end:])
            assert read(connection).status == 200
        connection.sendall(whole + GET + b"\r\n" + whole)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 3:
            received += _more(connection)


def test_an_offer_in_single_bytes_or_with_an_expectation_is_ignored(port: int) -> None:
    with connected(port) as connection:
        for byte in offering(OFFERS[0]):
            connection.sendall(bytes([byte]))
        assert read(connection).status == 200
        head, _, body = offering(OFFERS[0] + b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert read(connection).status == 200


def test_a_refused_request_with_an_offer_gets_its_error(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(offering(OFFERS[0]).replace(b"/v1/compare", b"/v1/nothing"))
        assert read(connection).type == "not_found"
        connection.sendall(offering(b"Connection: Upgrade\r\nUpgrade: " + b"x" * MAX_HEADER_BYTES + b"\r\n"))
        assert read(connection).type == "headers_too_large"
        assert is_closed(connection)
    with connected(port) as connection:
        connection.sendall(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read(connection).type == "invalid_http"
    with connected(port) as connection:
        connection.sendall(offering(OFFERS[0])[:-1])
        assert read(connection).type == "body_timeout"


@pytest.mark.parametrize("option", ["--http2", "--http1.1", "--http1.0"])
def test_curl_can_post_with_every_version_it_offers(port: int, option: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl on this machine")
    command = [curl, "--silent", "--noproxy", "*", option, "--data-binary", "@-", f"http://127.0.0.1:{port}/v1/compare"]
    done = subprocess.run(command, input=CONTENT, capture_output=True, timeout=PATIENCE_S, check=True)
    assert "margin" in json.loads(done.stdout), done.stdout


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_client_that_closes_its_half_gets_its_reply(port: int, version: bytes) -> None:
    for request in (POST + CONTENT, offering(OFFERS[0]), GET + b"\r\n"):
        with connected(port) as connection:
            connection.sendall(request.replace(b"HTTP/1.1", b"HTTP/" + version))
            connection.shutdown(socket.SHUT_WR)
            assert read(connection).status == 200
            assert is_closed(connection)


def test_every_pipelined_request_of_a_client_that_closes_its_half_gets_its_reply(port: int) -> None:
    with connected(port) as connection:
        connection.sendall((POST + CONTENT) * 3)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while more := connection.recv(65536):
            received += more
        assert received.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("part", [b"", GET[:10], POST, POST + CONTENT[:5]])
def test_a_client_that_closes_its_half_before_its_request_is_complete_is_disconnected(port: int, part: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        assert is_closed(connection)


class Slow:
    """An application that replies when it is told to, and notices that its client has gone."""

    def __init__(self) -> None:
        self.has_begun, self.has_lost_client, self.may_reply = (threading.Event() for _ in range(3))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        self.has_begun.set()
        gone = asyncio.ensure_future(receive())
        while not gone.done() and not self.may_reply.is_set():  # noqa: ASYNC110  # an event of another thread
            await asyncio.sleep(0.01)
        if gone.done():
            self.has_lost_client.set()
            return
        gone.cancel()
        await PlainTextResponse("late")(scope, receive, send)


@pytest.mark.parametrize("request_", [GET + b"\r\n", POST + CONTENT], ids=["GET", "POST"])
def test_a_client_that_has_gone_is_told_from_one_that_closed_its_half(request_: bytes) -> None:
    app = Slow()
    with listening(app, limits()) as number:
        with connected(number) as connection:
            connection.sendall(request_)
            assert app.has_begun.wait(PATIENCE_S)
        assert app.has_lost_client.wait(PATIENCE_S)
    app = Slow()
    with listening(app, limits()) as number, connected(number) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        interim = connection.recv(1000)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n", "it takes longer than is believed"
        app.may_reply.set()
        assert read(connection).body == b"late"
        assert not app.has_lost_client.is_set()


def test_a_client_of_http_1_0_that_closes_its_half_gets_no_interim_reply() -> None:
    app = Slow()
    with listening(app, limits()) as number, connected(number) as connection:
        connection.sendall(GET.replace(b"1.1", b"1.0") + b"\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert app.has_begun.wait(PATIENCE_S)
        time.sleep(2.5 * HALF_CLOSED_S)
        app.may_reply.set()
        assert read(connection).body == b"late"


def test_a_kept_connection_is_not_closed_while_a_pool_keeps_it() -> None:
    assert Settings.model_fields["keep_alive_s"].default >= 75
    tight = replace(limits(), keep_alive_s=0.2)
    with listening(create_app_without_model(), tight) as number, connected(number) as connection:
        connection.sendall(GET + b"\r\n")
        assert read(connection).status == 200
        assert is_closed(connection), "the setting counts"


def create_app_without_model() -> ASGIApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await PlainTextResponse("x")(scope, receive, send)

    return app


def test_a_client_that_waits_for_its_reply_does_not_time_out() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(HEADER_TIMEOUT_S * 2.5)
            await PlainTextResponse("late")(scope, receive, send)

    with listening(slow, limits()) as number, connected(number) as connection:
        connection.sendall(GET + b"\r\n" + GET)
        assert read(connection).body == b"late"
        assert read(connection).type == "header_timeout"


def test_a_client_that_does_not_read_is_disconnected() -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 2**20, "more_body": True})
        ended.set()

    ended = threading.Event()
    with listening(endless, limits()) as number, connected(number) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(GET + b"\r\n")
        assert ended.wait(PATIENCE_S)


def test_requests_beyond_the_connection_limit_get_a_503_except_probes(bundle_folder: Path) -> None:
    settings = Settings(model=bundle_folder, body_timeout_s=BODY_TIMEOUT_S)
    with listening(create_app(create_state(settings)), limits(max_connections=3)) as number, ExitStack() as stack:
        early = [stack.enter_context(connected(number)) for _ in range(3)]
        for connection in early:
            connection.sendall(GET + b"\r\n")
            assert read(connection).status == 200
        late = [stack.enter_context(connected(number)) for _ in range(2)]
        late[0].sendall(POST + CONTENT)
        reply = read(late[0])
        assert (reply.status, reply.type) == (503, "too_many_connections")
        assert (reply.headers["connection"], reply.headers["retry-after"]) == ("close", "1")
        assert is_closed(late[0])
        late[1].sendall(GET + b"\r\n")
        assert read(late[1]).status == 200
        early[0].sendall(POST + CONTENT)
        assert read(early[0]).status == 200, "an earlier connection stays open"
        early[1].close()
        late[1].close()
        time.sleep(0.1)
        next_one = stack.enter_context(connected(number))
        next_one.sendall(POST + CONTENT)
        assert read(next_one).status == 200


def test_connections_far_beyond_the_limit_get_a_503_before_their_request(
    monkeypatch: pytest.MonkeyPatch, bundle_folder: Path
) -> None:
    monkeypatch.setattr("service.http.connections.SURPLUS_CONNECTIONS", 1)
    settings = Settings(model=bundle_folder)
    with listening(create_app(create_state(settings)), limits(max_connections=1)) as number, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connected(number)).sendall(GET + b"\r\n")
        time.sleep(0.1)
        third = stack.enter_context(connected(number))
        assert read(third).type == "too_many_connections"
        assert is_closed(third)


def test_open_files_are_raised_to_what_the_connections_need(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: raised.append(limit))
    others = SURPLUS_CONNECTIONS + OTHER_FILES
    assert allow_open_files(100) == 100
    assert raised == []
    assert allow_open_files(2000) == 2000
    assert raised == [(2000 + others, 4096)]
    assert allow_open_files(16_384) == 4096 - others
    assert raised[1:] == [(4096, 4096)]


@pytest.mark.parametrize("files", [160, 200, 512, 640, 1024])
def test_a_low_limit_on_open_files_leaves_room_for_both_kinds(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    connections, surplus = allow_open_files(16_384), surplus_connections()
    assert connections + surplus + OTHER_FILES <= files
    assert connections >= 16
    assert surplus >= 16


def test_a_limit_on_open_files_that_leaves_no_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(InvalidSettings, match=r"is 64, and the service needs at least 160; raise it: ulimit -n"):
        allow_open_files(16_384)


def test_request_in_one_piece_starts_no_timer(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    start = BoundedHttpProtocol._start_timer
    monkeypatch.setattr(BoundedHttpProtocol, "_start_timer", lambda self: started.append(self) or start(self))
    with connected(port) as connection:
        for _ in range(5):
            connection.sendall(POST + CONTENT)
            assert read(connection).status == 200
    assert len(started) == 1, "that of the connection itself"


def test_reset_connections_do_no_harm(port: int) -> None:
    for part in (b"", GET[:10], POST, POST + CONTENT):
        with connected(port) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(part)
    with connected(port) as connection:
        connection.sendall(GET + b"\r\n")
        assert read(connection).status == 200


def test_uvicorn_still_has_the_internals_that_the_bounds_rely_on() -> None:
    callbacks = (
        "connection_made connection_lost data_received on_message_begin on_headers_complete on_message_complete "
        "pause_writing resume_writing send_400_response eof_received _unset_keepalive_if_required on_url"
    )
    assert set(callbacks.split()) <= set(vars(HttpToolsProtocol))
    config = uvicorn.Config(PlainTextResponse("x"), http=HttpToolsProtocol, lifespan="off", log_config=None)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)

    async def make() -> Any:
        return make_protocol(server)

    protocol = asyncio.run(make())
    assert isinstance(protocol, HttpToolsProtocol)
    assert protocol.connections is server.server_state.connections
    assert {"cycle", "scope", "headers", "transport", "loop", "parser", "pipeline"} <= set(vars(protocol))
    assert "self.url" in inspect.getsource(HttpToolsProtocol.on_message_begin)
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    assert "self.keep_alive =" in cycle
    assert "self.response_complete =" in cycle
    assert "self.response_started =" in cycle
