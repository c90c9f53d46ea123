"""Test strategy cascade of /v1/rank and /v1/rewards: one bundle scores all responses, another compares the best."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.scoring.pipeline import Pipeline, Question
from service.settings import Settings
from tests.e2e.test_models import changed_copy
from tests.service.conftest import Served, serve
from tests.support.waiting import wait_until
from tinyrm.bundle import Bundle
from tinyrm.cascade import Cascade
from tinyrm.errors import Overloaded
from tinyrm.ranking import expected_wins
from tinyrm.scorer import Scorer

RESPONSES = [
    "2 + 2 = 4.",
    "I cannot help with that.",
    "It is four, as we all know.",
    "2 + 2 = 5.",
    "No.",
    "def add(a, b)",
]
CASCADE: dict[str, Any] = {"prompt": "What is 2 + 2?", "responses": RESPONSES, "strategy": "cascade"}


@pytest.fixture(scope="module")
def both(bundle_folder: Path, response_bundle_folder: Path) -> Iterator[Served]:
    """Return an application whose default bundle reads pairs, and a further one responses."""
    with serve(Settings(model=bundle_folder, more_models=str(response_bundle_folder))) as one:
        yield one


@pytest.fixture(scope="module")
def scorers(bundle_folder: Path, response_bundle_folder: Path) -> tuple[Scorer, Scorer]:
    return Scorer.open(response_bundle_folder), Scorer.open(bundle_folder)


def rank(served: Served, path: str = "/v1/rank", **changes: Any) -> Any:
    reply = served.client.post(path, json=CASCADE | changes)
    assert reply.status_code == 200, reply.text
    return reply.json()


def pipelines(served: Served) -> tuple[Pipeline, Pipeline]:
    return served.state.registry.resolve_cascade(Question(""))


@pytest.mark.parametrize("top", [2, 4, 6])
def test_a_cascade_is_that_of_the_library(both: Served, scorers: tuple[Scorer, Scorer], top: int) -> None:
    reply = rank(both, top=top, win_matrix=True, domain="safety")
    ranking = Cascade(*scorers, top=top).rank(CASCADE["prompt"], RESPONSES, domain="safety")
    assert reply["order"] == ranking.order
    assert reply["strengths"] == pytest.approx(ranking.strengths.values.tolist(), abs=1e-3)
    assert reply["standard_errors"] == pytest.approx(ranking.strengths.standard_errors.tolist(), abs=1e-3)
    matrix = np.array([[np.nan if p is None else p for p in row] for row in reply["win_matrix"]])
    np.testing.assert_allclose(matrix, ranking.probabilities, atol=1e-3)
    assert reply["comparisons"] == top * (top - 1) // 2
    assert reply["usage"]["sequences"] == len(RESPONSES) + top * (top - 1)
    assert np.ptp(reply["strengths"]) > 0.01, "responses all alike would be in any order"


def test_the_usage_is_that_of_both_models(both: Served) -> None:
    alone, pairs = (pipeline.manifest.identity for pipeline in pipelines(both))
    reply = rank(both)
    assert reply["model"] == f"{alone}+{pairs}"
    of_scores = rank(both, strategy="round_robin", model=alone)
    best = [RESPONSES[i] for i in of_scores["order"][:4]]
    of_pairs = rank(both, strategy="round_robin", model=pairs, responses=best)
    for name in ("sequences", "tokens", "gflops"):
        assert reply["usage"][name] == pytest.approx(of_scores["usage"][name] + of_pairs["usage"][name])
    assert (reply["comparisons"], reply["usage"]["sequences"]) == (6, 6 + 12)
    assert [reply["order"][i] for i in range(4)] == [RESPONSES.index(best[i]) for i in of_pairs["order"]]
    assert reply["order"][4:] == of_scores["order"][4:]


def test_either_bundle_may_be_the_one_that_the_request_selects(
    both: Served, bundle_folder: Path, response_bundle_folder: Path
) -> None:
    alone, pairs = (pipeline.manifest.identity for pipeline in pipelines(both))
    expected = rank(both)
    assert rank(both, model=alone) == rank(both, model=pairs) == expected
    with serve(Settings(model=response_bundle_folder, more_models=str(bundle_folder))) as other:
        assert rank(other)["strengths"] == pytest.approx(expected["strengths"], abs=1e-4)
    with serve(Settings(model=bundle_folder, specialists=f"safety={response_bundle_folder}")) as other:
        assert rank(other, domain="safety")["model"] == expected["model"]


def test_rewards_are_strengths_or_the_wins_that_they_predict(both: Served) -> None:
    strengths = rank(both, top=3)["strengths"]
    zero_mean, unit = (rank(both, "/v1/rewards", top=3, scale=scale) for scale in ("zero_mean", "unit"))
    assert zero_mean["rewards"] == pytest.approx(strengths, abs=1e-4)
    assert unit["rewards"] == pytest.approx(expected_wins(np.array(strengths)).tolist(), abs=1e-4)
    assert unit["model"] == rank(both)["model"]
    assert unit["usage"]["sequences"] == 6 + 6


def test_top_is_4_or_all_of_fewer_by_default_and_one_order_is_half_of_the_pairs(both: Served) -> None:
    assert rank(both)["comparisons"] == 6
    assert rank(both, responses=RESPONSES[:3])["comparisons"] == 3
    assert rank(both, responses=RESPONSES[:2])["usage"]["sequences"] == 2 + 2
    assert rank(both, swap="off")["usage"]["sequences"] == 6 + 6


BAD = {
    "top of one": {"top": 1},
    "top beyond all": {"top": 7},
    "top of more than a call may have": {"top": 1001},
    "no number": {"top": "many"},
    "top without a cascade": {"strategy": "swiss", "top": 3},
    "top without a strategy": {"strategy": "round_robin", "top": 3},
    "a reference": {"reference": "Four."},
    "a domain of neither": {"domain": "cooking"},
    "no margin for auto": {"swap": "auto"},
}


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/rewards"])
@pytest.mark.parametrize("wrong", BAD.values(), ids=list(BAD))
def test_bad_input_is_a_422_with_a_reason(both: Served, wrong: dict[str, Any], path: str) -> None:
    scored = both.metric("tinyrm_batch_items_sum")
    reply = both.client.post(path, json=CASCADE | wrong)
    assert reply.status_code == 422, reply.text
    assert both.metric("tinyrm_batch_items_sum") == scored, "a refusal comes before the work"
    error = reply.json()["error"]
    assert error["type"] in ("invalid_request", "unknown_domain", "invalid_input")
    assert len(error["message"].split()) > 2


def test_more_comparisons_than_one_call_may_have_are_refused_before_any_score(
    bundle_folder: Path, response_bundle_folder: Path
) -> None:
    with serve(Settings(model=bundle_folder, more_models=str(response_bundle_folder), max_batch_items=5)) as one:
        reply = one.client.post("/v1/rank", json=CASCADE)
        assert (reply.status_code, reply.json()["error"]["type"]) == (422, "invalid_input")
        assert "6 comparisons" in reply.json()["error"]["message"]
        assert one.metric("tinyrm_batch_items_sum") == 0
        assert rank(one, top=3)["comparisons"] == 3


def no_cascade(served: Served, **changes: Any) -> str:
    reply = served.client.post("/v1/rank", json=CASCADE | changes)
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "no_cascade")
    return str(reply.json()["error"]["message"])


def test_without_a_model_of_the_other_kind_there_is_no_cascade(served: Served, pointwise: Served) -> None:
    assert f"{served.pipeline.manifest.identity} reads a pair" in no_cascade(served)
    assert f"{pointwise.pipeline.manifest.identity} reads a response" in no_cascade(pointwise)


def test_of_several_of_the_other_kind_the_domain_selects_one(
    bundle_folder: Path, response_bundle_folder: Path, tmp_path: Path
) -> None:
    spec = {"domains": {"general": "Which is best?", "code": "Which is right?"}}
    other = changed_copy(bundle_folder, tmp_path / "other", name="other", spec=with_domains(bundle_folder, **spec))
    settings = Settings(model=response_bundle_folder, more_models=f"{bundle_folder}, {tmp_path / 'other'}")
    with serve(settings) as one:
        alone = one.pipeline.manifest.identity
        served = [pipeline.manifest.identity for pipeline in one.state.registry.pipelines.values()]
        (toy,) = set(served) - {alone, other}
        assert rank(one, domain="code")["model"] == f"{alone}+{other}"
        assert rank(one, domain="safety")["model"] == f"{alone}+{toy}"
        assert rank(one, model="other")["model"] == f"{alone}+{other}"
        message = no_cascade(one)
        assert all(identity in message for identity in (alone, other, toy))
        assert "no domain" not in no_cascade(one, domain="general")


def with_domains(folder: Path, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = Bundle.open(folder).manifest.spec.model_dump()
    return fields | changes


@pytest.fixture
def own(bundle_folder: Path, response_bundle_folder: Path, tmp_path: Path) -> Iterator[Served]:
    """Return an application that a test may change, with its own copy of the bundle that reads pairs."""
    changed_copy(bundle_folder, tmp_path / "toy")
    with serve(Settings(model=tmp_path / "toy", more_models=str(response_bundle_folder))) as one:
        yield one


@contextmanager
def waiting_between(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run a cascade that waits when its responses are scored, until the block ends. Yield the future of its reply."""
    alone, _ = pipelines(served)
    arrived, go_on = threading.Event(), asyncio.Event()
    submit = alone.backend.submit

    async def wait(*arguments: Any, **options: Any) -> Any:
        result = await submit(*arguments, **options)
        arrived.set()
        await go_on.wait()
        return result

    monkeypatch.setattr(alone.backend, "submit", wait)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(served.client.post, "/v1/rank", json=CASCADE)
        try:
            assert arrived.wait(30)
            yield reply
        finally:
            assert served.client.portal
            served.client.portal.call(go_on.set)


def test_the_second_model_does_not_refuse_what_the_first_has_scored(
    own: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pairs = pipelines(own)

    def refuse(*_: Any) -> None:
        raise Overloaded("full")

    with waiting_between(own, monkeypatch) as reply:
        monkeypatch.setattr(pairs.backend, "refuse_if_busy", refuse)
    assert reply.result().status_code == 200
    alone, _ = pipelines(own)
    monkeypatch.setattr(alone.backend, "submit", None)
    refused = own.client.post("/v1/rank", json=CASCADE)
    assert refused.status_code == 429, "a model that is busy refuses before the other one works"


def test_a_drain_between_the_models_finishes_the_request(own: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.client.portal
    with waiting_between(own, monkeypatch) as reply:
        draining = own.client.portal.start_task_soon(own.state.drain)
        _, pairs = pipelines(own)
        wait_until(lambda: bool(pairs.load().unhealthy_reason))
        assert not draining.done()
    assert reply.result().status_code == 200
    draining.result(30)


def test_a_reload_between_the_models_changes_neither(
    own: Served, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, (_, old) = rank(own)["model"], pipelines(own)
    assert own.client.portal
    with waiting_between(own, monkeypatch) as reply:
        new = changed_copy(bundle_folder, tmp_path / "toy", temperature=2.0)
        own.client.portal.call(own.state.registry.reload)
        assert pipelines(own)[1].manifest.identity == new
        assert not old.load().unhealthy_reason, "the old one is kept until the request has its result"
    assert reply.result().json()["model"] == before
    assert rank(own)["model"].endswith(new)
    wait_until(lambda: bool(old.load().unhealthy_reason))


def test_one_time_limit_covers_both_models(own: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pairs = pipelines(own)
    left: list[float | None] = []
    submit = pairs.backend.submit

    async def note(*arguments: Any, timeout_s: float | None, **options: Any) -> Any:
        left.append(timeout_s)
        return await submit(*arguments, timeout_s=timeout_s, **options)

    monkeypatch.setattr(pairs.backend, "submit", note)
    alone, _ = pipelines(own)
    first = alone.backend.submit

    async def slow(*arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(0.5)
        return await first(*arguments, **options)

    monkeypatch.setattr(alone.backend, "submit", slow)
    headers = {"X-Request-Timeout-Ms": "20000"}
    assert own.client.post("/v1/rank", json=CASCADE, headers=headers).status_code == 200
    assert all(seconds is not None and seconds < 19.6 for seconds in left)
    assert len(left) == 6
    late = own.client.post("/v1/rank", json=CASCADE, headers={"X-Request-Timeout-Ms": "300"})
    assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline_exceeded")
    assert all(seconds == 0 for seconds in left[6:]), "no time is left for the second model"
