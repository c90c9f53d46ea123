"""Test that texts are counted as a model would read them, and that nothing is scored."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.scoring.encode_queue import EncodeQueue
from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tinyrm.api import MAX_RESPONSES

LONG = {"prompt": "a question " * 200, "response_a": "yes", "response_b": "an answer " * 200}
GROUP = {"prompt": PAIR["prompt"], "responses": [PAIR["response_a"], PAIR["response_b"]]}


@pytest.fixture(scope="module")
def shared(shared_prompt_bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=shared_prompt_bundle_folder)) as one:
        yield one


@pytest.fixture(params=["served", "pointwise", "shared"])
def each(request: pytest.FixtureRequest) -> Served:
    """Return an application of each kind: it reads pairs, responses, or sets."""
    served: Served = request.getfixturevalue(request.param)
    return served


def count(served: Served, **body: Any) -> Any:
    reply = served.client.post("/v1/tokens", json=GROUP | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_reply_has_exactly_this_shape(each: Served) -> None:
    reply = count(each)
    spec = each.pipeline.manifest.spec
    read = each.pipeline.texts.encoder.tokenize(spec.instruction(), GROUP["prompt"], GROUP["responses"])
    assert reply == {
        "model": each.pipeline.manifest.identity,
        "max_tokens": 256,
        "prompt": len(read.prompt),
        "responses": [len(ids) for ids in read.responses],
        "longest_sequence": reply["longest_sequence"],
        "truncated": {"prompt": 0, "responses": [0, 0]},
    }


def test_the_longest_sequence_is_the_one_that_would_be_read(served: Served, pointwise: Served, shared: Served) -> None:
    assert count(served)["longest_sequence"] == served.compare(swap="off")["usage"]["tokens"]
    for alone in (pointwise, shared):
        (longest,) = alone.client.post("/v1/score", json=GROUP | {"responses": GROUP["responses"][1:]}).json()[
            "results"
        ]
        assert count(alone)["longest_sequence"] == longest["tokens"]


def test_what_would_be_dropped_is_what_a_comparison_drops(each: Served) -> None:
    dropped = each.compare(**LONG)["truncated"]
    reply = count(each, prompt=LONG["prompt"], responses=[LONG["response_a"], LONG["response_b"]])
    assert reply["truncated"] == {
        "prompt": dropped["prompt"],
        "responses": [dropped["response_a"], dropped["response_b"]],
    }
    assert reply["truncated"]["prompt"] > 100
    assert reply["longest_sequence"] > reply["max_tokens"]


@pytest.mark.parametrize("prompt", ["", [{"role": "user", "content": ""}]])
def test_texts_may_be_empty_and_have_no_tokens_then(each: Served, prompt: Any) -> None:
    reply = count(each, prompt=prompt, responses=["", "4"])
    assert (reply["prompt"], reply["responses"][0]) == (0, 0)
    assert reply["responses"][1] > 0


def test_messages_are_counted_as_they_are_read(each: Served) -> None:
    message = {"role": "user", "content": GROUP["prompt"]}
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    assert count(each, prompt=[message]) == count(each)
    assert count(each, prompt=[message, {"role": "user", "content": ""}]) == count(each)
    assert count(each, responses=[[{"role": "assistant", "tool_calls": [call]}]])["responses"][0] > 5


def test_reasoning_that_is_dropped_is_not_counted(each: Served) -> None:
    thought = ["<think>" + "hm " * 50 + "</think>4", "5"]
    kept, dropped = (count(each, responses=thought, reasoning=mode)["responses"] for mode in ("keep", "drop"))
    assert dropped[0] <= 2
    assert kept[0] > 50


def test_nothing_goes_through_the_engine(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh.pipeline.backend, "submit", None)
    monkeypatch.setattr(fresh.pipeline.backend, "refuse_if_busy", None)
    assert count(fresh)["prompt"] > 0
    assert fresh.metric("tinyrm_requests_total", endpoint="tokens", status="200") == 1


def test_texts_that_are_only_counted_are_not_in_the_metrics_of_texts(fresh: Served) -> None:
    count(fresh, prompt="a [MASK]", responses=["[SEP]", "word " * 2000])
    assert fresh.metric("tinyrm_special_token_texts_total") == 0
    fresh.compare(prompt="a [MASK]")
    assert fresh.metric("tinyrm_special_token_texts_total") == 1


def test_huge_texts_are_counted_in_the_threads_of_the_encode_queue(
    fresh: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    characters, threads = [], set()
    run, tokenize = EncodeQueue.run, fresh.pipeline.texts.encoder.tokenize

    async def record(queue: EncodeQueue, work: Any, size: int, *rest: Any) -> Any:
        characters.append(size)
        return await run(queue, work, size, *rest)

    def record_thread(*texts: Any) -> Any:
        threads.add(threading.current_thread().name)
        return tokenize(*texts)

    monkeypatch.setattr(EncodeQueue, "run", record)
    monkeypatch.setattr(fresh.pipeline.texts.encoder, "tokenize", record_thread)
    reply = count(fresh, responses=["word " * 20_000] * 50)
    # Of each text no more is read than could be kept, and no step holds more than a few of them.
    assert max(characters) <= 65_536 + 4096
    assert sum(characters) > 50 * 4000
    assert all(name.startswith("encode-") for name in threads)
    assert min(reply["responses"]) > reply["max_tokens"]


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"responses": []}, 422, "invalid_request"),
        ({"responses": ["x"] * (MAX_RESPONSES + 1)}, 422, "invalid_request"),
        ({"responses": ["\ud800"]}, 422, "invalid_text"),
        ({"prompt": None}, 422, "invalid_request"),
        ({"swap": "on"}, 422, "invalid_request"),
        ({"domain": "cooking"}, 422, "unknown_domain"),
        ({"model": "other"}, 404, "unknown_model"),
        ({"instruction": "word " * 500}, 422, "instruction_too_long"),
    ],
)
def test_what_a_comparison_refuses_is_refused(served: Served, change: dict[str, Any], status: int, kind: str) -> None:
    reply = served.client.post("/v1/tokens", content=json.dumps(GROUP | change))
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind)


def test_the_model_of_the_domain_counts(served: Served, bundle_folder: Path, response_bundle_folder: Path) -> None:
    settings = Settings(model=bundle_folder, specialists=f"safety={response_bundle_folder}")
    with serve(settings) as both:
        general, safety = count(both, domain="general"), count(both, domain="safety")
    assert general["model"] != safety["model"]
    assert general["longest_sequence"] == count(served, domain="general")["longest_sequence"]
