"""Test that a client's connections belong to one process and one event loop, and that each reply is its call's own."""

import asyncio
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import uvloop

from tests.support.scripted_server import COMPARED, Received, answer, batch, compared, error, scripted
from tinyrm import AsyncClient, Client
from tinyrm.errors import InvalidInput, ServiceFailed
from tinyrm.integrations.verl import compute_score

TEXTS = ("What is 2 + 2?", "4", "5")


def in_fork(work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a forked process, or the text of its error."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def child() -> None:
        try:
            result = work()
        except Exception as failure:  # noqa: BLE001 - shown by the assertion
            result = f"{type(failure).__name__}: {failure}"
        writer.send(result)

    process = context.Process(target=child)
    process.start()
    try:
        assert reader.poll(30), "the forked process hangs"
        return reader.recv()
    finally:
        process.kill()


def compare_plain(client: Client) -> str:
    return client.compare(*TEXTS).preferred


def compare_async(client: AsyncClient) -> str:
    return asyncio.run(client.compare(*TEXTS)).preferred


@pytest.mark.parametrize(("kind", "compare"), [(Client, compare_plain), (AsyncClient, compare_async)])
def test_a_forked_process_opens_its_own_connections(kind: Any, compare: Callable[[Any], str]) -> None:
    with scripted(compared()) as server:
        client = kind(server.url)
        compare(client)
        assert in_fork(lambda: [compare(client), compare(client), in_fork(lambda: compare(client))]) == ["a", "a", "a"]
        compare(client)
    connections = [received.connection for received in server.received]
    parent, child, again, grandchild, parent_again = connections
    assert len({parent, child, grandchild}) == 3
    if kind is Client:  # each asyncio.run is an event loop of its own
        assert (child, parent) == (again, parent_again)


def test_the_reward_function_of_verl_can_be_forked() -> None:
    def score() -> float:
        return compute_score("x", "4", "5", {"question": "2 + 2?"}, base_url=server.url)

    with scripted(compared()) as server:
        score()
        assert in_fork(score) == 0.75
    parent, child = (received.connection for received in server.received)
    assert parent != child


def test_a_client_closed_in_a_forked_process_stays_open_in_its_parent() -> None:
    with scripted(compared()) as server, Client(server.url) as client:
        client.compare(*TEXTS)
        in_fork(client.close)
        client.compare(*TEXTS)
    assert len({received.connection for received in server.received}) == 1


def test_a_list_is_not_continued_in_a_forked_process() -> None:
    """The threads that send it are in the parent: the child would wait for them without end."""
    items: list[Any] = [{"prompt": "p", "response_a": "a", "response_b": "b"}] * 10
    with scripted(batch()) as server, Client(server.url) as client:
        results = client.compare_many(items, batch_items=1, concurrency=2)
        next(results)
        assert in_fork(lambda: list(results)).startswith("InvalidInput: this list was begun before")
        assert len(list(results)) == 9


def compare_and_send(client: Client, writer: "Connection") -> None:
    writer.send(client.compare(*TEXTS).preferred)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_client_can_be_sent_to_a_process_of_any_start_method(method: str) -> None:
    context = multiprocessing.get_context(method)
    reader, writer = context.Pipe(duplex=False)
    with scripted(compared()) as server, Client(server.url) as client:
        client.compare(*TEXTS)
        process = context.Process(target=compare_and_send, args=(client, writer))
        process.start()
        process.join(60)
    assert reader.recv() == "a"


@pytest.mark.parametrize(("kind", "compare"), [(Client, compare_plain), (AsyncClient, compare_async)])
def test_a_client_can_be_pickled(kind: Any, compare: Callable[[Any], str]) -> None:
    with scripted(compared()) as server:
        client = kind(server.url, "key", timeout_s=7)
        compare(client)
        copy = pickle.loads(pickle.dumps(client))
        compare(copy)
    assert server.received[1].headers["Authorization"] == "Bearer key"
    assert int(server.received[1].headers["X-Request-Timeout-Ms"]) < 7000


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_event_loops_one_after_another_share_a_client(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with scripted(compared()) as server:
        client = AsyncClient(server.url)
        for _ in range(4):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                assert runner.run(client.compare(*TEXTS)).preferred == "a"
                assert runner.run(client.compare(*TEXTS)).preferred == "a"
        asyncio.run(client.aclose())
    connections = [received.connection for received in server.received]
    assert connections[::2] == connections[1::2]
    assert len(set(connections)) == 4


def test_event_loops_at_the_same_time_share_a_client() -> None:
    together = threading.Barrier(3)

    def one(preferred: list[str]) -> None:
        async def calls() -> None:
            for _ in range(3):
                together.wait(60)
                preferred.append((await client.compare(*TEXTS)).preferred)

        asyncio.run(calls())

    with scripted(compared()) as server:
        client, results = AsyncClient(server.url), [[], [], []]  # type: ignore[var-annotated]
        threads = [threading.Thread(target=one, args=(result,)) for result in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert results == [["a"] * 3] * 3


def test_without_an_event_loop_of_asyncio_the_message_names_client() -> None:
    with pytest.raises(InvalidInput, match="use Client"):
        AsyncClient().compare(*TEXTS).send(None)


@pytest.mark.parametrize(("kind", "compare"), [(Client, compare_plain), (AsyncClient, compare_async)])
def test_a_closed_client_is_an_error_of_ours(kind: Any, compare: Callable[[Any], str]) -> None:
    client = kind("http://127.0.0.1:1")
    asyncio.run(client.aclose()) if kind is AsyncClient else client.close()
    with pytest.raises(InvalidInput, match="closed"):
        compare(client)


@pytest.mark.parametrize("header", ["X-Request-Id", "X-Call-Id"])
@pytest.mark.parametrize("status", [200, 422, 503])
@pytest.mark.parametrize(("kind", "compare"), [(Client, compare_plain), (AsyncClient, compare_async)])
def test_a_response_to_another_request_is_a_failure(
    kind: Any, compare: Callable[[Any], str], status: int, header: str
) -> None:
    """Its connection is closed, because the next response on it would be another request's, too."""
    ids = {header.replace("-", "_"): "r-1"}
    foreign = answer(200, COMPARED, **ids) if status == 200 else error(status, "x", **ids)

    def both(client: Any) -> None:
        with pytest.raises(ServiceFailed, match=f"another request: its {header} is 'r-1'") as caught:
            compare(client)
        assert (caught.value.type, caught.value.status) == ("unexpected_reply", status)
        compare(client)

    with scripted(foreign, compared()) as server:
        both(kind(server.url))
    first, second = (received.connection for received in server.received)
    assert first != second


def test_a_proxy_may_replace_the_request_id() -> None:
    def replaced(handler: Any, received: Received) -> None:
        ids = {"X_Request_Id": "of-a-proxy", "X_Call_Id": received.headers["X-Call-Id"]}
        answer(200, COMPARED, **ids)(handler, received)

    with scripted(replaced, replaced) as server, Client(server.url) as client:
        assert [client.compare(*TEXTS).preferred for _ in range(2)] == ["a", "a"]
    assert len({received.headers["X-Call-Id"] for received in server.received}) == 2


def test_an_id_that_a_proxy_has_doubled_is_accepted() -> None:
    def doubled(handler: Any, received: Received) -> None:
        answer(200, COMPARED, X_Request_Id=f"of-a-proxy, {received.headers['X-Request-Id']}")(handler, received)

    with scripted(doubled) as server, Client(server.url) as client:
        assert client.compare(*TEXTS).preferred == "a"
