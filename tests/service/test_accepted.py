"""Test that what was accepted is scored: lists, groups and cohorts, whatever their length, and short beside long."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.dialects import context
from service.scoring import batch
from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tests.support.waiting import PATIENCE_S, wait_until
from tinyrm.bundle import Bundle

MAX_WAIT_S = 0.05
WINDOW_ITEMS = 16
LONG_TEXT = "What do you think of it? " * 2000
LONG = {"prompt": LONG_TEXT, "response_a": LONG_TEXT, "response_b": LONG_TEXT}


@pytest.fixture
def slow(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Return an application whose engine takes a tenth of the wait that is allowed for each run of one comparison.

    It queues and encodes few items of a list at once.
    """
    monkeypatch.setattr(batch, "WINDOW_ITEMS", WINDOW_ITEMS)
    monkeypatch.setattr(context, "WINDOW_ITEMS", WINDOW_ITEMS)
    settings = Settings(
        model=bundle_folder,
        max_batch_tokens=512,
        max_wait_s=MAX_WAIT_S,
        drain_timeout_s=PATIENCE_S,
        dialects="openrlhf",
        default_swap="on",
    )
    with serve(settings) as served:
        run = served.engine.run

        def slowly(sequences: Any) -> Any:
            time.sleep(MAX_WAIT_S / 10)
            return run(sequences)

        monkeypatch.setattr(served.engine, "run", slowly)
        yield served


def long_pair(number: int) -> dict[str, str]:
    return {"prompt": f"{number}", "response_a": "yes " * 300, "response_b": "no " * 300}


def test_a_list_is_scored_to_its_end_however_long_it_takes(slow: Served) -> None:
    reply = slow.client.post("/v1/compare/batch", json={"items": [long_pair(n) for n in range(60)]})
    assert reply.status_code == 200
    assert [result.get("error") for result in reply.json()["results"]] == [None] * 60
    assert slow.metric("tinyrm_shed_requests_total", reason="overloaded") == 0


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/rewards"])
@pytest.mark.parametrize("strategy", ["round_robin", "swiss", "knockout"])
def test_a_ranking_is_scored_to_its_end_however_long_it_takes(slow: Served, path: str, strategy: str) -> None:
    body = {"prompt": "Which?", "responses": [f"{n} " * 200 for n in range(12)], "strategy": strategy}
    reply = slow.client.post(path, json=body)
    assert reply.status_code == 200, reply.text


def test_a_list_with_many_groups_is_scored_to_its_end_however_long_it_takes(slow: Served) -> None:
    """The first groups keep the engine busy for longer than a new sample may wait, and the list goes on."""
    slow.state.cohorts._limits = replace(slow.state.cohorts._limits, max_wait_s=MAX_WAIT_S)  # type: ignore[union-attr]
    samples = [(prompt, f"{prompt}{'yes ' * 100}{n}") for prompt in map(str, range(12)) for n in range(4)]
    body = {"query": [query for _, query in samples], "prompts": [prompt for prompt, _ in samples]}
    for _ in range(2):  # the second list meets a measured pace
        reply = slow.client.post("/get_reward?group_size=4", json=body)
        assert reply.status_code == 200, reply.text
        assert set(reply.json()["extra_logs"]["partial"]) == {0.0}
    assert slow.metric("tinyrm_shed_requests_total", reason="overloaded") == 0


def test_cohorts_that_are_complete_are_scored_however_long_it_takes(slow: Served) -> None:
    def reward(prompt: int, response: int) -> int:
        body = {"query": [f"{prompt}{'yes ' * 200}{response}"], "prompts": [str(prompt)]}
        return int(slow.client.post("/get_reward", json=body).status_code)

    with ThreadPoolExecutor(24) as clients:
        statuses = list(clients.map(reward, *zip(*[(n % 3, n // 3) for n in range(24)], strict=True)))
    assert statuses == [200] * 24


@pytest.mark.parametrize(
    ("path", "body"),
    [
        # More items than are queued or encoded at once.
        ("/v1/compare/batch", {"items": [long_pair(n) for n in range(WINDOW_ITEMS + 40)]}),
        *(
            ("/v1/rank", {"prompt": "?", "responses": [f"{n} " * 200 for n in range(size)], "strategy": strategy})
            for strategy, size in (("round_robin", 8), ("swiss", 16), ("knockout", 32))
        ),
        ("/get_reward", {"query": [f"{n % 2}{'yes ' * 200}{n}" for n in range(16)], "prompts": ["0", "1"] * 8}),
    ],
)
def test_a_drain_finishes_accepted_work_that_is_not_queued_yet(slow: Served, path: str, body: dict[str, Any]) -> None:
    assert slow.client.portal is not None
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(slow.client.post, path, json=body)
        wait_until(lambda: slow.metric("tinyrm_queue_items") > 0, "a queue")
        drain = slow.client.portal.start_task_soon(slow.state.drain)
        wait_until(lambda: slow.client.get("/readyz").status_code == 503, "the service is not ready")
        refused = slow.client.post("/v1/compare", json=PAIR)
        assert not drain.done(), "nothing was left to be finished"
        reply = accepted.result(PATIENCE_S)
        drain.result(PATIENCE_S)
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "shutting_down")
    assert reply.status_code == 200, reply.text
    assert '"error":' not in reply.text


def test_a_drain_finishes_what_is_being_encoded(slow: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert slow.client.portal is not None
    begun, gate, tokenize = threading.Event(), threading.Event(), slow.pipeline.texts.encoder.tokenize

    def wait(*texts: Any) -> Any:
        begun.set()
        assert gate.wait(PATIENCE_S)
        return tokenize(*texts)

    monkeypatch.setattr(slow.pipeline.texts.encoder, "tokenize", wait)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(slow.client.post, "/v1/compare", json=LONG)
        assert begun.wait(PATIENCE_S)
        drain = slow.client.portal.start_task_soon(slow.state.drain)
        wait_until(lambda: slow.client.get("/readyz").status_code == 503, "the service is not ready")
        gate.set()
        assert accepted.result(PATIENCE_S).status_code == 200
        drain.result(PATIENCE_S)


@pytest.fixture
def held(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold the tokenizer at long texts until the event is set."""
    gate, tokenize = threading.Event(), served.pipeline.texts.encoder.tokenize

    def wait(instruction: str, prompt: str, responses: Any) -> Any:
        if len(prompt) > len(LONG_TEXT) // 2:
            assert gate.wait(PATIENCE_S), "the reply waited for the encoding"
        return tokenize(instruction, prompt, responses)

    monkeypatch.setattr(served.pipeline.texts.encoder, "tokenize", wait)
    yield gate
    gate.set()


def test_short_requests_are_answered_while_long_ones_are_being_encoded(served: Served, held: threading.Event) -> None:
    with ThreadPoolExecutor(20) as clients:
        long = [clients.submit(served.compare, **LONG) for _ in range(20)]
        wait_until(lambda: served.pipeline.encode_wait_s() > 0)
        for _ in range(5):
            served.compare()
        assert not any(reply.done() for reply in long)
        held.set()
        assert all(reply.result()["truncated"]["prompt"] > 0 for reply in long)


def test_a_deadline_that_passes_before_or_during_the_encoding_is_a_504(served: Served, held: threading.Event) -> None:
    before = served.metric("tinyrm_shed_requests_total", reason="deadline_exceeded")

    def ask(_: int) -> Any:
        return served.client.post("/v1/compare", json=LONG, headers=deadline)

    deadline = {"X-Request-Timeout-Ms": "200"}
    with ThreadPoolExecutor(8) as clients:
        replies = list(clients.map(ask, range(8)))
    assert not held.is_set()
    kinds = {(reply.status_code, reply.json()["error"]["type"]) for reply in replies}
    assert (504, "deadline_exceeded") in kinds
    assert kinds <= {(504, "deadline_exceeded"), (429, "overloaded")}
    assert served.metric("tinyrm_shed_requests_total", reason="deadline_exceeded") > before


def test_the_wait_of_texts_is_a_metric_and_part_of_retry_after(served: Served, held: threading.Event) -> None:
    with ThreadPoolExecutor(20) as clients:
        long = [clients.submit(served.compare, **LONG) for _ in range(20)]
        wait_until(lambda: served.pipeline.encode_wait_s() > 0)
        wait_until(lambda: served.metric("tinyrm_encode_wait_seconds") > 0)
        assert served.state.registry.retry_after_s() >= 2
        held.set()
        for reply in long:
            reply.result()


def test_the_tokenizer_uses_the_threads_of_the_service_only(served: Served) -> None:
    """Its own are one pool for the process, in which every short text would wait behind the long ones."""
    assert served.pipeline
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.parametrize("path", ["/v1/compare/batch", "/get_reward"])
def test_one_reply_names_one_revision_whatever_is_reloaded_meanwhile(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Replace the model while the first item of a list runs; the other items are not in the queue yet."""
    monkeypatch.setattr(batch, "WINDOW_ITEMS", 1)
    monkeypatch.setattr(context, "WINDOW_ITEMS", 1)
    with serve(Settings(model=bundle_folder, dialects="openrlhf")) as served:
        registry, old, run = served.state.registry, served.pipeline, served.engine.run
        bundle = Bundle.open(bundle_folder)
        other = replace(bundle, manifest=bundle.manifest.model_copy(update={"revision": "other"}))
        scored: list[str] = []
        read_pair = type(old)._read_pair

        def record(pipeline: Any, *sequences_and_result: Any) -> Any:
            scored.append(pipeline.manifest.identity)
            return read_pair(pipeline, *sequences_and_result)

        def replace_at_first(sequences: Any) -> Any:
            if registry.default is old:
                assert served.client.portal is not None
                served.client.portal.call(registry.replace, bundle_folder, other, old.backend)
            return run(sequences)

        monkeypatch.setattr(type(old), "_read_pair", record)
        monkeypatch.setattr(served.engine, "run", replace_at_first)
        lists = {
            "/v1/compare/batch": {"items": [PAIR] * 8},
            "/get_reward": {"query": ["q: yes"] * 8, "prompts": ["q: "] * 8, "labels": ["no"] * 8},
        }
        reply = served.client.post(path, json=lists[path])
        assert reply.status_code == 200, reply.text
        assert scored == [old.manifest.identity] * 8
        assert registry.default.manifest.revision == "other"
