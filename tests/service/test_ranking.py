"""Test /v1/rank and /v1/rewards on the toy bundle, and swap auto, which they share with /v1/compare."""

from collections.abc import Iterator
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
    "none": {"responses": []},
    "too many": {"responses": ["x"] * 1001},
    "an empty reference": {"strategy": "reference", "reference": ""},
    "an unknown way with empty ones": {"empty": "skip"},
    "no text": {"responses": ["x", 7]},
    "unknown strategy": {"strategy": "guess"},
    "no reference": {"strategy": "reference"},
    "a reference without its strategy": {"reference": "x"},
    "unknown domain": {"domain": "cooking"},
    "unknown field": {"best_of": 1},
    "unknown swap": {"swap": "maybe"},
    "no margin for auto": {"swap": "auto"},
    "more comparisons than one call may have": {"responses": ["x"] * 128, "strategy": "round_robin"},
    "more even of swiss": {"responses": ["x"] * 600},
}


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/rewards"])
@pytest.mark.parametrize("wrong", BAD.values(), ids=list(BAD))
def test_bad_input_is_a_422_with_a_reason(served: Served, wrong: dict[str, Any], path: str) -> None:
    reply = served.client.post(path, json=GROUP | wrong)
    assert reply.status_code == 422, reply.text
    error = reply.json()["error"]
    assert error["type"] in ("invalid_request", "unknown_domain", "invalid_input")
    assert len(error["message"].split()) > 2


@pytest.mark.parametrize(
    ("path", "wrong"),
    [("/v1/rank", {"responses": ["x"]}), ("/v1/rank", {"responses": ["x"] * 129, "win_matrix": True})],
)
def test_a_rank_needs_two_responses_and_a_matrix_has_a_limit(served: Served, path: str, wrong: dict[str, Any]) -> None:
    reply = served.client.post(path, json=GROUP | wrong)
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "invalid_request")


def test_many_responses_are_ranked_where_the_strategy_is_cheap(served: Served) -> None:
    responses = [f"answer {i}" for i in range(140)]
    assert rank(served, responses=responses, strategy="knockout")["comparisons"] == 139


def test_a_group_that_is_too_large_for_all_pairs_is_ranked_by_swiss(fresh_small: Served) -> None:
    """Of 8 responses all 28 pairs fit into a call, of 9 all 36 do not."""
    responses = [f"answer {i}" for i in range(9)]
    all_pairs = rank(fresh_small, responses=responses[:8])
    assert all_pairs["comparisons"] == 28
    swiss = rank(fresh_small, responses=responses, strategy="swiss")
    assert rank(fresh_small, responses=responses) == swiss
    assert rewards(fresh_small, responses=responses) == pytest.approx(swiss["strengths"], abs=1e-6)


@pytest.fixture(scope="module")
def fresh_small(bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=bundle_folder, max_batch_items=28)) as one:
        yield one


@pytest.mark.parametrize(("scale", "neutral"), [("zero_mean", 0.0), ("unit", 0.5)])
def test_one_response_alone_gets_a_neutral_reward_that_is_marked(
    served: Served, pointwise: Served, scale: str, neutral: float
) -> None:
    for one in (served, pointwise):
        before = one.metric("tinyrm_partial_rewards_total", endpoint="rewards")
        reply = one.client.post("/v1/rewards", json=GROUP | {"responses": ["4"], "scale": scale})
        assert (reply.json()["rewards"], reply.json()["partial"]) == ([neutral], True)
        assert reply.headers["X-TinyRM-Partial"] == "true"
        assert one.metric("tinyrm_partial_rewards_total", endpoint="rewards") == before + 1
        whole = one.client.post("/v1/rewards", json=GROUP | {"scale": scale})
        assert whole.json()["partial"] is False
        assert "X-TinyRM-Partial" not in whole.headers


EMPTY = ["", " ", "<|im_end|>\n", [{"role": "assistant", "content": None}]]


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("strategy", [None, "swiss", "knockout"])
def test_an_empty_response_is_last_whatever_the_model_says(
    served: Served, pointwise: Served, empty: Any, strategy: str | None
) -> None:
    chosen = {"strategy": strategy} if strategy else {}
    for one in (served, pointwise):
        without = rank(one, responses=RESPONSES, **chosen)
        with_two = rank(one, responses=[RESPONSES[0], empty, *RESPONSES[1:], empty], **chosen)
        strengths = np.array(with_two["strengths"])
        others = strengths[[0, 2, 3, 4, 5]]
        assert others - others.mean() == pytest.approx(np.array(without["strengths"]), abs=1e-5)
        assert strengths[[1, 6]] == pytest.approx([others.min() - 3] * 2)
        assert strengths.sum() == pytest.approx(0, abs=1e-9)
        assert with_two["order"][-2:] == [1, 6]
        assert with_two["usage"] == without["usage"], "nobody judges it"


def test_empty_responses_are_judged_if_that_is_asked_for(served: Served) -> None:
    blank = [*RESPONSES, "it"]
    expected = rank(served, responses=[*RESPONSES, " "], empty="judge")
    assert rank(served, responses=[*RESPONSES, ""], empty="judge") == expected
    assert expected["strengths"] != pytest.approx(rank(served, responses=[*RESPONSES, " "])["strengths"], abs=1e-3)
    assert expected["comparisons"] == rank(served, responses=blank)["comparisons"]


@pytest.mark.parametrize("scale", ["zero_mean", "unit"])
def test_groups_of_nothing_but_empty_responses_tie(served: Served, pointwise: Served, scale: str) -> None:
    for one in (served, pointwise):
        assert rewards(one, responses=["", " ", ""], scale=scale) == [0.5 if scale == "unit" else 0.0] * 3
        loses = rewards(one, responses=["", "4"], scale=scale)
        p = 1 / (1 + np.exp(-3.0))
        assert loses == pytest.approx([1 - p, p] if scale == "unit" else [-1.5, 1.5])


def test_an_empty_response_loses_to_a_reference(served: Served, pointwise: Served) -> None:
    against: dict[str, Any] = {"strategy": "reference", "reference": "Four.", "scale": "unit"}
    for one in (served, pointwise):
        wins = rewards(one, **against)
        *others, last = rewards(one, responses=[*RESPONSES, ""], **against)
        assert others == pytest.approx(wins, abs=1e-5)
        assert last <= min(*wins, 0.5) / 4
        assert rewards(one, responses=[""], **against) == pytest.approx([1 / (1 + np.exp(3.0))])


def test_an_unknown_domain_is_refused_also_if_nothing_is_judged(served: Served) -> None:
    reply = served.client.post("/v1/rewards", json=GROUP | {"responses": ["", ""], "domain": "cooking"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "unknown_domain")


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
