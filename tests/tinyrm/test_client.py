"""Test both clients against a scripted server: what they send, repeat and raise, and when."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from tests.conftest import REPOSITORY
from tests.support.processes import free_port
from tests.support.scripted_server import (
    COMPARED,
    MODEL_CARD,
    USAGE,
    Received,
    ScriptedServer,
    Step,
    answer,
    batch,
    compared,
    error,
    hang_up,
    item_error,
    scripted,
    stall,
    trickle,
)
from tinyrm import AsyncClient, Client
from tinyrm.client import CompareItem, ItemError, ModelCard, transport
from tinyrm.errors import (
    CallFailed,
    CallRefused,
    CallTimedOut,
    InvalidInput,
    ServiceBusy,
    ServiceFailed,
    ServiceUnreachable,
)

Ask = Callable[..., Any]
TEXTS = ("What is 2 + 2?", "4", "5")


def item(number: int) -> CompareItem:
    return {"prompt": f"p{number}", "response_a": "a", "response_b": "b"}


def ask_plain(url: str, method: str, *arguments: Any, options: dict[str, Any] | None = None, **keywords: Any) -> Any:
    with Client(url, **options or {}) as client:
        answered = getattr(client, method)(*arguments, **keywords)
        return list(answered) if method == "compare_many" else answered


def ask_async(url: str, method: str, *arguments: Any, options: dict[str, Any] | None = None, **keywords: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(url, **options or {}) as client:
            answered = getattr(client, method)(*arguments, **keywords)
            return await collected(answered) if method == "compare_many" else await answered

    return asyncio.run(run())


async def collected(results: AsyncIterator[Any]) -> list[Any]:
    return [result async for result in results]


@pytest.fixture(params=[ask_plain, ask_async], ids=["plain", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen


def gaps_s(server: ScriptedServer) -> list[float]:
    return [after.at_s - before.at_s for before, after in zip(server.received, server.received[1:], strict=False)]


def test_compare_sends_its_arguments_and_nothing_else(ask: Ask) -> None:
    with scripted(compared()) as server:
        reply = ask(server.url, "compare", *TEXTS, domain="math", swap=None, options={"api_key": "k", "timeout_s": 20})
    (received,) = server.received
    assert received.path == "/v1/compare"
    assert received.body == {"prompt": TEXTS[0], "response_a": "4", "response_b": "5", "domain": "math"}
    assert received.headers["Authorization"] == "Bearer k"
    assert 18_000 < int(received.headers["X-Request-Timeout-Ms"]) < 20_000
    assert reply.model_dump() == COMPARED


def test_messages_and_a_path_prefix_are_sent(ask: Ask) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    with scripted(compared()) as server:
        ask(server.url + "/behind/proxy/", "compare", turns, "a", "b")
    assert server.received[0].path == "/behind/proxy/v1/compare"
    assert server.received[0].body["prompt"] == turns


@pytest.mark.parametrize(
    "trouble",
    [
        error(429, "overloaded", Retry_After="0"),
        error(503, "engine_restarting"),
        answer(502, b"<html>Bad gateway"),
        answer(504, b"upstream is slow"),
        hang_up,
    ],
    ids=["429", "503", "502", "504", "hang_up"],
)
def test_temporary_errors_are_retried(ask: Ask, trouble: Step) -> None:
    with scripted(trouble, trouble, compared()) as server:
        assert ask(server.url, "compare", *TEXTS).preferred == "a"
    assert len(server.received) == 3
    assert len({received.headers["X-Request-Id"] for received in server.received}) == 1
    left_ms = [int(received.headers["X-Request-Timeout-Ms"]) for received in server.received]
    assert left_ms == sorted(left_ms, reverse=True)


def test_retry_after_is_respected(ask: Ask) -> None:
    with scripted(error(429, "overloaded", Retry_After="1"), compared()) as server:
        ask(server.url, "compare", *TEXTS)
    assert gaps_s(server)[0] >= 1


def test_retry_after_may_be_a_date() -> None:
    """Both clients pause as the test above has it, for what this header is read as."""
    at = (datetime.now(UTC) + timedelta(seconds=2)).replace(microsecond=0)
    with scripted(error(503, "not_ready", Retry_After=format_datetime(at, usegmt=True)), compared()) as server:
        ask_plain(server.url, "compare", *TEXTS)
    left_s = at.timestamp() - time.time()  # until that date, on the clock that it is written in
    assert server.received[1].at_s >= time.monotonic() + left_s - 0.05


def test_pauses_grow_and_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: the n-th pause is anywhere between 0 and 0.25 s times 2 to the n."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for _ in range(5):
        with scripted(*[error(503, "not_ready")] * 3, compared()) as server:
            ask_plain(server.url, "compare", *TEXTS)
    assert len(pauses) == 15
    assert all(0 <= pause <= 0.25 * 2 ** (number % 3) for number, pause in enumerate(pauses))
    assert len(set(pauses[::3])) == 5
    assert max(pauses[2::3]) > 0.25


@pytest.mark.parametrize(
    ("step", "kind", "type_", "status"),
    [
        (error(422, "invalid_request"), CallRefused, "invalid_request", 422),
        (error(401, "unauthorized"), CallRefused, "unauthorized", 401),
        (error(404, "unknown_model"), CallRefused, "unknown_model", 404),
        (error(500, "engine_failed"), ServiceFailed, "engine_failed", 500),
        (error(504, "deadline_exceeded", Retry_After="1"), CallTimedOut, "deadline_exceeded", 504),
        (answer(307, b"", Location="http://elsewhere/"), ServiceFailed, "http_error", 307),
        (answer(200, b"<html>hello"), ServiceFailed, "unexpected_reply", 200),
        (answer(200, {"preferred": "c"}), ServiceFailed, "unexpected_reply", 200),
    ],
)
def test_permanent_errors_are_raised_at_once(
    ask: Ask, step: Step, kind: type[CallFailed], type_: str, status: int
) -> None:
    with scripted(step) as server, pytest.raises(kind) as caught:
        ask(server.url, "compare", *TEXTS)
    assert (caught.value.type, caught.value.status) == (type_, status)
    assert len(server.received) == 1


def test_error_has_the_request_id_and_the_message_of_the_service(ask: Ask) -> None:
    with scripted(error(422, "invalid_text")) as server, pytest.raises(CallRefused) as caught:
        ask(server.url, "compare", *TEXTS)
    assert caught.value.request_id == server.received[0].headers["X-Request-Id"]
    assert str(caught.value) == "this is invalid_text (422 invalid_text)"


def test_tries_are_bounded(ask: Ask) -> None:
    with scripted(error(429, "overloaded")) as server, pytest.raises(ServiceBusy) as caught:
        ask(server.url, "compare", *TEXTS, options={"max_retries": 2})
    assert len(server.received) == 3
    assert (caught.value.type, caught.value.status) == ("overloaded", 429)


def test_a_closed_port_is_unreachable_with_advice(ask: Ask) -> None:
    with pytest.raises(ServiceUnreachable, match="is it running at that address") as caught:
        ask(f"http://127.0.0.1:{free_port()}", "compare", *TEXTS, options={"max_retries": 1})
    assert caught.value.status is None


def test_a_wait_longer_than_the_time_left_is_not_begun(ask: Ask) -> None:
    with scripted(error(429, "overloaded", Retry_After="14400")) as server, pytest.raises(ServiceBusy):
        ask(server.url, "compare", *TEXTS, options={"timeout_s": 7200})
    assert len(server.received) == 1


@pytest.mark.parametrize("step", [stall, trickle], ids=["silence", "trickle"])
def test_the_time_of_a_call_is_its_own_however_it_is_spent(ask: Ask, step: Step) -> None:
    """The server sends until the client disconnects: only the call's own time limit can end it."""
    begun = time.monotonic()
    with scripted(step) as server, pytest.raises(CallTimedOut, match=r"within 0\.5 s"):
        ask(server.url, "compare", *TEXTS, options={"timeout_s": 0.5})
    assert time.monotonic() - begun > 0.45


def test_tries_share_the_time(ask: Ask) -> None:
    """Lose the connection of two tries after 0.4 s each, so that at most 0.4 s remain for the third."""

    def late(handler: Any, received: Received) -> None:
        time.sleep(0.4)
        hang_up(handler, received)

    with scripted(late, late, stall) as server, pytest.raises((CallTimedOut, ServiceUnreachable)):
        ask(server.url, "compare", *TEXTS, options={"timeout_s": 1.2})
    left_ms = [int(received.headers["X-Request-Timeout-Ms"]) for received in server.received]
    assert all(left <= 1200 - 400 * tries for tries, left in enumerate(left_ms)), left_ms


def test_calls_beyond_the_connections_wait_outside_of_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pool would compare all of them with all connections at every change, and block the event loop for seconds."""
    inside, counts = 0, []
    send = httpx.AsyncClient.send

    async def counting(http: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        nonlocal inside
        inside += 1
        counts.append(inside)
        response = await send(http, request, **options)
        inside -= 1
        return response

    async def many(url: str) -> None:
        async with AsyncClient(url, max_connections=2) as client:
            await asyncio.gather(*(client.compare("p", "a", "b") for _ in range(20)))

    monkeypatch.setattr(httpx.AsyncClient, "send", counting)
    with scripted(compared()) as server:
        asyncio.run(many(server.url))
    assert len(counts) == 20
    assert max(counts) == 2


def test_waiting_for_a_connection_counts() -> None:
    """Use one connection, which another call holds: if the wait did not count, each call would succeed."""

    async def run() -> None:
        async with AsyncClient(server.url, timeout_s=0.5, max_connections=1, max_retries=0) as client:
            calls = [client.compare(*TEXTS) for _ in range(4)]
            assert all(isinstance(e, CallTimedOut) for e in await asyncio.gather(*calls, return_exceptions=True))

    with scripted(stall) as server:
        asyncio.run(run())
    assert len(server.received) < 4


def test_batch_keeps_order_and_errors(ask: Ask) -> None:
    def result_of(received: Any) -> Any:
        return item_error("unknown_domain") if received["prompt"] == "p1" else COMPARED | {"model": received["prompt"]}

    with scripted(batch(result_of)) as server:
        first, second, third = ask(server.url, "compare_batch", [item(0), item(1), item(2)])
    assert (first.model, third.model) == ("p0", "p2")
    assert second == ItemError(type="unknown_domain", message="this is unknown_domain")


def test_only_items_with_temporary_errors_are_sent_again(ask: Ask) -> None:
    def first_try(received: Any) -> Any:
        return {"p0": COMPARED, "p1": item_error("overloaded"), "p2": item_error("invalid_text")}[received["prompt"]]

    with scripted(batch(first_try), batch()) as server:
        results = ask(server.url, "compare_batch", [item(0), item(1), item(2)])
    assert [received.body["items"] for received in server.received] == [[item(0), item(1), item(2)], [item(1)]]
    assert [getattr(result, "type", "answered") for result in results] == ["answered", "answered", "invalid_text"]


def test_items_that_stay_refused_keep_their_error_and_the_others_their_result(ask: Ask) -> None:
    with scripted(batch(lambda i: COMPARED if i["prompt"] == "p0" else item_error("shutting_down")), hang_up) as server:
        first, second = ask(server.url, "compare_batch", [item(0), item(1)], options={"max_retries": 1})
    assert first.preferred == "a"
    assert second.type == "shutting_down"


def test_an_empty_batch_sends_nothing(ask: Ask) -> None:
    assert ask("http://127.0.0.1:1", "compare_batch", []) == []


def test_many_results_are_in_order_whatever_is_slow(ask: Ask) -> None:
    def slow_first(handler: Any, received: Received) -> None:
        time.sleep(0.2 if received.body["items"][0]["prompt"] in ("p0", "p20") else 0)
        batch(lambda i: COMPARED | {"model": i["prompt"]})(handler, received)

    with scripted(slow_first) as server:
        results = ask(server.url, "compare_many", (item(n) for n in range(47)), batch_items=5, concurrency=3)
    assert [result.model for result in results] == [f"p{n}" for n in range(47)]
    assert len(server.received) == 10


def test_many_reads_its_items_lazily() -> None:
    taken: list[int] = []

    def items() -> Any:
        for number in range(1000):
            taken.append(number)
            yield item(number)

    with scripted(batch()) as server, Client(server.url) as client:
        results = client.compare_many(items(), batch_items=5, concurrency=2)
        next(results)
        assert len(taken) <= 10
        results.close()  # type: ignore[attr-defined]


def test_a_list_that_is_abandoned_leaves_no_work_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that no thread has begun is dropped without a warning of Python about a coroutine."""
    released = threading.Event()

    def late(handler: Any, received: Received) -> None:
        released.wait(30)
        batch()(handler, received)

    monkeypatch.setattr(transport, "ThreadPoolExecutor", lambda _, **options: ThreadPoolExecutor(1, **options))
    with (
        warnings.catch_warnings(record=True) as caught,
        scripted(batch(), late) as server,
        Client(server.url) as client,
    ):
        warnings.simplefilter("always")
        results = client.compare_many((item(n) for n in range(9)), batch_items=1, concurrency=3)
        next(results)
        results.close()  # type: ignore[attr-defined]
        gc.collect()
        released.set()
    assert [str(warning.message) for warning in caught if warning.category is RuntimeWarning] == []


@pytest.mark.parametrize("responses", ["one text", b"bytes", None, 5, {"role": "assistant", "content": "one message"}])
def test_responses_are_a_list(ask: Ask, responses: Any) -> None:
    """A text is a sequence, too: its characters would be ranked."""
    for method in ("rank", "rewards"):
        with pytest.raises(InvalidInput, match="responses: must be a list of texts"):
            ask("http://127.0.0.1:1", method, "p", responses)


@pytest.mark.parametrize("wrong", [None, "text", ["p", "a", "b"]])
def test_an_item_that_is_not_a_dict_is_named(ask: Ask, wrong: Any) -> None:
    for method in ("compare_batch", "compare_many"):
        with pytest.raises(InvalidInput, match=r"items\.1"):
            ask("http://127.0.0.1:1", method, [item(0), wrong])


def test_a_batch_that_is_too_large_is_halved(ask: Ask) -> None:
    def at_most_two(handler: Any, received: Received) -> None:
        items = received.body["items"]
        too_much = len(items) > 2 or items[0]["prompt"] == "p3"
        step = error(413, "body_too_large") if too_much else batch(lambda i: COMPARED | {"model": i["prompt"]})
        step(handler, received)

    with scripted(at_most_two) as server:
        results = ask(server.url, "compare_many", [item(n) for n in range(7)], batch_items=7)
    assert [getattr(result, "model", "error") for result in results] == ["p0", "p1", "p2", "error", "p4", "p5", "p6"]
    assert results[3].type == "body_too_large"


def test_refusal_ends_a_long_list(ask: Ask) -> None:
    with scripted(error(401, "unauthorized")) as server, pytest.raises(CallRefused, match="unauthorized"):
        ask(server.url, "compare_many", [item(n) for n in range(100)], batch_items=5)


def test_a_list_has_one_id_in_all_its_tries(ask: Ask) -> None:
    with scripted(batch(lambda _: item_error("overloaded")), batch()) as server:
        ask(server.url, "compare_batch", [item(0)])
    assert len(server.received) == 2
    assert len({received.headers["X-Request-Id"] for received in server.received}) == 1


def test_progress_shows_how_far_it_is(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted(batch()) as server:
        ask(server.url, "compare_many", [item(n) for n in range(20)], batch_items=5, progress=True)
    assert "20/20" in capsys.readouterr().err


def test_progress_without_tqdm_names_the_package(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(InvalidInput, match=r"tinyrm\[progress\]"):
        ask("http://127.0.0.1:1", "compare_many", [item(0)], progress=True)


@pytest.mark.parametrize("wrong", [{"batch_items": 0}, {"concurrency": 0}])
def test_a_batch_size_of_zero_is_refused(ask: Ask, wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        ask("http://127.0.0.1:1", "compare_many", [item(0)], **wrong)


def test_rank_and_rewards(ask: Ask) -> None:
    ranked = {
        "order": [1, 0],
        "strengths": [-0.5, 0.5],
        "standard_errors": [0.1, 0.1],
        "cycle_rate": None,
        "win_matrix": [[None, 0.3], [0.7, None]],
        "comparisons": 1,
        "sets": None,
        "model": "toy@1",
        "usage": USAGE,
        "truncated_tokens": 0,
    }
    rewarded = {"rewards": [0.3, 0.7], "sets": None, "model": "toy@1", "usage": USAGE}
    with scripted(answer(200, ranked), answer(200, rewarded), answer(200, rewarded)) as server:
        reply = ask(server.url, "rank", "p", ["x", "y"], strategy="swiss", win_matrix=True)
        assert reply.model_dump() == ranked
        assert ask(server.url, "rewards", "p", ("x", "y"), scale="unit", swap="auto").rewards == [0.3, 0.7]
        ask(server.url, "rewards", "p", ["x", "y"], strategy="cascade", top=2)
    assert server.received[0].body == {"prompt": "p", "responses": ["x", "y"], "strategy": "swiss", "win_matrix": True}
    assert server.received[1].body == {"prompt": "p", "responses": ["x", "y"], "scale": "unit", "swap": "auto"}
    assert server.received[2].body == {"prompt": "p", "responses": ["x", "y"], "strategy": "cascade", "top": 2}
    assert [received.path for received in server.received] == ["/v1/rank", "/v1/rewards", "/v1/rewards"]


def test_score(ask: Ask) -> None:
    result = {"raw": 0.7, "score": None, "tokens": 9, "truncated": {"prompt": 0, "response": 0}, "empty": False}
    scored = {"results": [result], "model": "toy@1", "usage": USAGE}
    with scripted(answer(200, scored)) as server:
        reply = ask(server.url, "score", "p", ["x"], domain="safety")
        assert reply.model_dump() == scored
        with pytest.raises(InvalidInput, match="responses: must be a list"):
            ask(server.url, "score", "p", "x")
    assert [(received.path, received.body) for received in server.received] == [
        ("/v1/score", {"prompt": "p", "responses": ["x"], "domain": "safety"})
    ]


def test_models(ask: Ask) -> None:
    card = MODEL_CARD | {"revision": "1"}
    with scripted(answer(200, {"models": [card | {"of_a_newer_service": 1}]})) as server:
        assert ask(server.url, "models") == [ModelCard.model_validate(card)]


def test_is_ready_sends_one_request(ask: Ask) -> None:
    with scripted(answer(200, {"status": "ready"}), error(503, "not_ready")) as server:
        assert ask(server.url, "is_ready") is True
        assert ask(server.url, "is_ready") is False
    assert len(server.received) == 2
    assert ask(f"http://127.0.0.1:{free_port()}", "is_ready") is False


def test_a_lone_surrogate_is_sent_unchanged(ask: Ask) -> None:
    """Let the service name the field; encoding it in the client would raise another error."""
    with scripted(compared()) as server:
        ask(server.url, "compare", "\ud800", "ü", "b")
    assert (server.received[0].body["prompt"], server.received[0].body["response_a"]) == ("\ud800", "ü")


def test_values_that_are_not_json_are_refused_by_the_client(ask: Ask) -> None:
    with pytest.raises(InvalidInput, match="JSON"):
        ask("http://127.0.0.1:1", "compare", b"bytes", "a", "b")


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host", "http://", "http://host:port", "http://host:99999", "", "http://host:8000\n"],
)
def test_an_invalid_address_is_refused_at_once(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidInput, match="base_url"):
            kind(url)


@pytest.mark.parametrize("key", ["", "two words", "new\nline", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(InvalidInput, match="api_key") as caught:
        Client(api_key=key)
    assert not key or key not in str(caught.value)


def test_the_package_imports_a_client_only_on_access() -> None:
    loaded = "[name in sys.modules for name in ('httpx', 'numpy', 'tokenizers')]"
    code = f"import sys, tinyrm; print({loaded}); tinyrm.Client; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[False, False, False]", "[True, False, False]"]
