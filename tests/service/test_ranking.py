"""Test /v1/rank and /v1/rewards on the toy bundle, and swap auto, which they share with /v1/compare."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tinyrm.comparison import Comparison
from tinyrm.errors import InvalidSettings
from tinyrm.manifest import AutoSwap
from tinyrm.ranking import margin_matrix
from tinyrm.ranking import rank as rank_margins
from tinyrm.scorer import Scorer

PROMPT = "What is 2 + 2?"
RESPONSES = ["2 + 2 = 4.", "I cannot help with that.", "It is four, as we all know.", "2 + 2 = 5.", "No."]
GROUP: dict[str, Any] = {"prompt": PROMPT, "responses": RESPONSES}


def rank(served: Served, **changes: Any) -> Any:
    reply = served.client.post("/v1/rank", json=GROUP | changes)
    assert reply.status_code == 200, reply.text
    return reply.json()


def rewards(served: Served, **changes: Any) -> list[float]:
    reply = served.client.post("/v1/rewards", json=GROUP | changes)
    assert reply.status_code == 200, reply.text
    values: list[float] = reply.json()["rewards"]
    return values


def test_a_rank_is_that_of_single_comparisons(served: Served, scorer: Scorer) -> None:
    reply = rank(served, win_matrix=True)
    pairs = list(combinations(range(5), 2))
    comparisons = [Comparison(PROMPT, RESPONSES[i], RESPONSES[j]) for i, j in pairs]
    instruction = served.pipeline.manifest.spec.instruction(None)
    preferences = scorer.score(comparisons, [instruction] * 10)
    # The RewardBench 2 scorer calls the same function on the same margins.
    ranking = rank_margins(margin_matrix(5, {p: q.margin for p, q in zip(pairs, preferences, strict=True)}))
    offline, wins = ranking.strengths, np.nan_to_num(ranking.probabilities)
    assert reply["strengths"] == pytest.approx(offline.values.tolist(), abs=1e-3)
    assert reply["standard_errors"] == pytest.approx(offline.standard_errors.tolist(), abs=1e-3)
    assert reply["order"] == ranking.order
    matrix = np.array([[np.nan if p is None else p for p in row] for row in reply["win_matrix"]])
    np.testing.assert_allclose(np.nan_to_num(matrix), wins, atol=1e-4)
    assert np.ptp(reply["strengths"]) > 0.01, "answers all alike would be in any order"


def test_the_cost_of_a_rank_is_that_of_its_comparisons(served: Served) -> None:
    reply = rank(served)
    singles = [served.compare(response_a=a, response_b=b)["usage"] for a, b in combinations(RESPONSES, 2)]
    assert reply["comparisons"] == 10
    assert reply["usage"]["tokens"] == sum(usage["tokens"] for usage in singles)
    assert reply["usage"]["gflops"] == pytest.approx(sum(usage["gflops"] for usage in singles))
    assert reply["win_matrix"] is None
    assert 0 <= reply["cycle_rate"] <= 1


def test_the_order_of_the_responses_does_not_matter(served: Served) -> None:
    backward = rank(served, responses=RESPONSES[::-1])
    assert backward["strengths"] == pytest.approx(rank(served)["strengths"][::-1], abs=1e-4)


@pytest.mark.parametrize(("strategy", "comparisons"), [("round_robin", 10), ("swiss", 8), ("knockout", 4)])
def test_each_strategy_ranks_all_responses(served: Served, strategy: str, comparisons: int) -> None:
    reply = rank(served, strategy=strategy)
    assert sorted(reply["order"]) == list(range(5))
    assert reply["comparisons"] <= comparisons
    assert sum(reply["strengths"]) == pytest.approx(0, abs=1e-9)
    assert reply["order"] == sorted(range(5), key=lambda i: -reply["strengths"][i])


def test_with_a_reference_each_response_is_compared_with_it_only(served: Served) -> None:
    reply = rank(served, strategy="reference", reference="Four.", win_matrix=True)
    assert (reply["comparisons"], len(reply["strengths"])) == (5, 5)
    wins = [served.compare(response_a=r, response_b="Four.")["probability_a"] for r in RESPONSES]
    assert [row[-1] for row in reply["win_matrix"][:-1]] == pytest.approx(wins, abs=1e-4)
    assert reply["order"] == sorted(range(5), key=lambda i: -wins[i])
    assert rewards(served, strategy="reference", reference="Four.", scale="unit") == pytest.approx(wins, abs=1e-4)
    alone = {"responses": RESPONSES[:1], "strategy": "reference", "reference": "Four.", "scale": "unit"}
    assert rewards(served, **alone) == pytest.approx(wins[:1], abs=1e-4)


def test_rewards_add_up_to_zero_or_are_shares(served: Served) -> None:
    zero_mean, unit = rewards(served), rewards(served, scale="unit")
    assert zero_mean == pytest.approx(rank(served)["strengths"], abs=1e-4)
    assert sum(zero_mean) == pytest.approx(0, abs=1e-9)
    assert sum(unit) == pytest.approx(2.5, abs=1e-6)
    assert all(0 <= reward <= 1 for reward in unit)
    matrix = rank(served, win_matrix=True)["win_matrix"]
    assert unit == pytest.approx([np.mean([p for p in row if p is not None]) for row in matrix], abs=1e-4)


def test_equal_responses_are_equally_good(served: Served) -> None:
    reply = rank(served, responses=["same", "same", "other"])
    assert reply["strengths"][0] == pytest.approx(reply["strengths"][1], abs=1e-6)


BAD = {
    "one response": {"responses": ["x"]},
    "none": {"responses": []},
    "too many": {"responses": ["x"] * 129},
    "an empty one": {"responses": ["x", ""]},
    "no text": {"responses": ["x", 7]},
    "unknown strategy": {"strategy": "guess"},
    "no reference": {"strategy": "reference"},
    "a reference without its strategy": {"reference": "x"},
    "unknown domain": {"domain": "cooking"},
    "unknown field": {"best_of": 1},
    "unknown swap": {"swap": "maybe"},
    "no margin for auto": {"swap": "auto"},
    "more comparisons than one call may have": {"responses": ["x"] * 128},
}


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/rewards"])
@pytest.mark.parametrize("wrong", BAD.values(), ids=list(BAD))
def test_bad_input_is_a_422_with_a_reason(served: Served, wrong: dict[str, Any], path: str) -> None:
    reply = served.client.post(path, json=GROUP | wrong)
    assert reply.status_code == 422, reply.text
    error = reply.json()["error"]
    assert error["type"] in ("invalid_request", "unknown_domain", "invalid_input")
    assert len(error["message"].split()) > 2


def test_many_responses_are_ranked_where_the_strategy_is_cheap(served: Served) -> None:
    responses = [f"answer {i}" for i in range(128)]
    assert rank(served, responses=responses, strategy="knockout")["comparisons"] == 127


def test_a_deadline_that_passes_is_a_504_and_leaves_nothing_behind(served: Served) -> None:
    headers = {"X-Request-Timeout-Ms": "1"}
    reply = served.client.post("/v1/rank", json=GROUP | {"responses": ["x " * 100] * 40}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["type"]) == (504, "deadline_exceeded")
    assert rank(served)["comparisons"] == 10
    assert served.metric("tinyrm_queue_items") == 0


def test_an_engine_that_fails_fails_the_whole_rank_once(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(type(fresh.engine), "run", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        reply = fresh.client.post("/v1/rank", json=GROUP)
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "engine_failed")
    assert rank(fresh)["comparisons"] == 10


def with_margin(served: Served, margin: float) -> None:
    auto = AutoSwap(margin=margin, pairs=1, saved=0, flips=0, max_flips=0)
    served.pipeline.manifest = served.pipeline.manifest.model_copy(update={"auto_swap": auto})


def test_auto_scores_the_second_order_only_if_the_first_is_not_decisive(fresh: Served) -> None:
    on, off = (fresh.compare(swap=swap) for swap in ("on", "off"))
    with_margin(fresh, abs(off["margin"]))
    assert fresh.compare(swap="auto") == off
    with_margin(fresh, abs(off["margin"]) * 1.01)
    auto = fresh.compare(swap="auto")
    assert auto["usage"] == on["usage"]
    assert auto["margin"] == pytest.approx(on["margin"], abs=1e-5)
    with_margin(fresh, 1e9)
    assert rank(fresh, swap="auto")["strengths"] == pytest.approx(rank(fresh)["strengths"], abs=1e-4)
    with_margin(fresh, 0)
    assert rank(fresh, swap="auto")["usage"]["tokens"] * 2 == rank(fresh)["usage"]["tokens"]


def test_a_service_whose_model_has_no_margin_does_not_start_with_auto(bundle_folder: Path) -> None:
    with pytest.raises(InvalidSettings, match="swap auto"), serve(Settings(model=bundle_folder, default_swap="auto")):
        pass


def test_compare_and_rank_share_the_fields_of_a_pair(served: Served) -> None:
    both = rank(served, responses=[PAIR["response_a"], PAIR["response_b"]], win_matrix=True)
    assert both["win_matrix"][0][1] == pytest.approx(served.compare()["probability_a"], abs=1e-5)
