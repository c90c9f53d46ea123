"""Test the service over a bundle that reads one response: /v1/score, and comparisons and groups without schedules."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.metrics import STAGES
from service.scoring.pipeline import Question
from service.scoring.responses import score_responses
from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tests.service.test_metrics import key, moved
from tests.service.test_ranking import GROUP, PROMPT, RESPONSES
from tests.support.waiting import PATIENCE_S, wait_until
from tinyrm.flops import exact_flops
from tinyrm.ranking import rank_scores, sigmoid
from tinyrm.scorer import Scorer

# Batch-mates change the order in which floats are added, no more than that.
TOLERANCE = 1e-5
SIXTEEN = [f"{n} apples, and {'very ' * n}few pears." for n in range(16)]


def post(served: Served, path: str, **body: Any) -> Any:
    reply = served.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def score(served: Served, **changes: Any) -> Any:
    return post(served, "/v1/score", **GROUP | changes)


def test_scores_are_those_of_the_scorer_in_all_three_forms(pointwise: Served, response_scorer: Scorer) -> None:
    manifest, scale = pointwise.pipeline.manifest, pointwise.pipeline.manifest.score_scale
    logits = response_scorer.score_responses(PROMPT, RESPONSES)
    reply = score(pointwise)
    raws = [result["raw"] for result in reply["results"]]
    expected = sigmoid(logits) if manifest.head.activation == "sigmoid" else logits
    assert raws == pytest.approx(expected.tolist(), abs=TOLERANCE)
    scores = [result["score"] for result in reply["results"]]
    if scale is None:
        assert scores == [None] * len(RESPONSES)
    else:
        assert scores == pytest.approx(((logits - scale.mean) / scale.std).tolist(), abs=1e-3)
    assert np.ptp(raws) > 100 * TOLERANCE, "scores all alike would be in any order"


def test_the_reply_has_exactly_this_shape(pointwise: Served) -> None:
    manifest = pointwise.pipeline.manifest
    reply = post(pointwise, "/v1/score", prompt=PROMPT, response="2 + 2 = 4.")
    (result,) = reply["results"]
    tokens = result["tokens"]
    assert reply == {
        "results": [
            {
                "raw": result["raw"],
                "score": result["score"],
                "tokens": tokens,
                "truncated": {"prompt": 0, "response": 0},
                "empty": False,
            }
        ],
        "model": manifest.identity,
        "usage": {
            "sequences": 1,
            "tokens": tokens,
            "gflops": pytest.approx(exact_flops(manifest.geometry, tokens) / 1e9),
        },
    }
    assert post(pointwise, "/v1/score", prompt=PROMPT, responses=["2 + 2 = 4."]) == reply


def test_a_response_of_which_nothing_is_judged_is_marked(pointwise: Served) -> None:
    """A client cannot know what the service drops by its own settings."""
    texts = [" <|im_end|>", "<think>2 + 2", "<think>2 + 2</think>4"]
    for reasoning, empty in (("keep", [True, False, False]), ("drop", [True, True, False])):
        results = score(pointwise, responses=texts, reasoning=reasoning)["results"]
        assert [result["empty"] for result in results] == empty


def test_a_score_does_not_depend_on_the_other_responses(pointwise: Served) -> None:
    together = score(pointwise, responses=SIXTEEN)["results"]
    with ThreadPoolExecutor(16) as clients:
        alone = list(clients.map(lambda response: score(pointwise, responses=[response])["results"][0], SIXTEEN))
    assert [one["raw"] for one in together] == pytest.approx([one["raw"] for one in alone], abs=TOLERANCE)
    assert [one["tokens"] for one in together] == [one["tokens"] for one in alone]


def test_a_comparison_is_the_difference_of_two_scores_whatever_swap_is(
    pointwise: Served, response_scorer: Scorer
) -> None:
    preference = response_scorer.compare(**PAIR)
    a, b = response_scorer.score_responses(PAIR["prompt"], [PAIR["response_a"], PAIR["response_b"]])
    replies = [pointwise.compare(swap=swap) for swap in ("on", "off", "auto", None)]
    for reply in replies:
        assert reply["margin"] == pytest.approx((a - b) / response_scorer.temperature, abs=1e-4)
        assert reply["probability_a"] == pytest.approx(preference.p_a, abs=TOLERANCE)
        assert reply["usage"]["sequences"] == 2
    backward = pointwise.compare(response_a=PAIR["response_b"], response_b=PAIR["response_a"])
    assert backward["margin"] == -replies[0]["margin"]
    assert pointwise.compare(response_a="same", response_b="same")["preferred"] == "tie"


@pytest.mark.parametrize("swap", ["on", "off"])
def test_a_comparison_has_no_orders(pointwise: Served, swap: str) -> None:
    assert pointwise.compare(swap=swap)["orders"] is None


def test_a_comparison_counts_the_tokens_dropped_from_both_sequences(pointwise: Served) -> None:
    long = "word " * 600
    reply = pointwise.compare(prompt=long, response_a=long, response_b="short")["truncated"]
    (with_a, with_b) = score(pointwise, prompt=long, responses=[long, "short"])["results"]
    assert reply == {
        "prompt": max(with_a["truncated"]["prompt"], with_b["truncated"]["prompt"]),
        "response_a": with_a["truncated"]["response"],
        "response_b": 0,
    }
    assert with_a["truncated"]["prompt"] > with_b["truncated"]["prompt"] > 0 < with_a["truncated"]["response"]


def test_a_batch_has_the_results_of_single_comparisons(pointwise: Served) -> None:
    items = [PAIR, PAIR | {"response_b": "Four."}, PAIR | {"domain": "cooking"}]
    reply = post(pointwise, "/v1/compare/batch", items=items)
    expected = [pointwise.compare(), pointwise.compare(response_b="Four.")]
    assert [one["margin"] for one in reply["results"][:2]] == pytest.approx([one["margin"] for one in expected], 1e-4)
    assert reply["results"][2]["error"]["type"] == "unknown_domain"
    assert reply["usage"]["sequences"] == 4


@pytest.mark.parametrize("strategy", ["round_robin", "swiss", "knockout"])
def test_a_group_is_ranked_by_its_scores_without_a_comparison(
    pointwise: Served, response_scorer: Scorer, strategy: str
) -> None:
    logits = response_scorer.score_responses(PROMPT, SIXTEEN)
    ranking = rank_scores(logits, response_scorer.temperature)
    reply = post(
        pointwise, "/v1/rank", prompt=PROMPT, responses=SIXTEEN, strategy=strategy, win_matrix=True, swap="auto"
    )
    assert reply["order"] == ranking.order
    assert reply["strengths"] == pytest.approx(ranking.strengths.values.tolist(), abs=1e-4)
    assert reply["standard_errors"] == pytest.approx(ranking.strengths.standard_errors.tolist(), abs=1e-4)
    assert (reply["comparisons"], reply["usage"]["sequences"], reply["cycle_rate"]) == (0, 16, 0)
    assert reply["win_matrix"][3][7] == pytest.approx(sigmoid(ranking.margins)[3, 7], abs=1e-4)
    tokens = [result["tokens"] for result in score(pointwise, responses=SIXTEEN)["results"]]
    assert reply["usage"]["tokens"] == sum(tokens)


def test_rewards_are_strengths_or_shares_of_wins(pointwise: Served) -> None:
    ranked = post(pointwise, "/v1/rank", **GROUP, win_matrix=True)
    zero_mean = post(pointwise, "/v1/rewards", **GROUP)
    unit = post(pointwise, "/v1/rewards", **GROUP, scale="unit")
    assert zero_mean["rewards"] == pytest.approx(ranked["strengths"], abs=1e-4)
    matrix = [[p for p in row if p is not None] for row in ranked["win_matrix"]]
    assert unit["rewards"] == pytest.approx([np.mean(row) for row in matrix], abs=1e-4)
    assert zero_mean["usage"]["sequences"] == len(RESPONSES)


def test_with_a_reference_each_response_is_compared_with_it_only(pointwise: Served) -> None:
    group = GROUP | {"strategy": "reference", "reference": "Four."}
    wins = [pointwise.compare(response_a=r, response_b="Four.")["probability_a"] for r in RESPONSES]
    unit = post(pointwise, "/v1/rewards", **group, scale="unit")
    assert unit["rewards"] == pytest.approx(wins, abs=1e-4)
    assert unit["usage"]["sequences"] == len(RESPONSES) + 1
    ranked = post(pointwise, "/v1/rank", **group, win_matrix=True)
    assert ranked["strengths"] == pytest.approx(post(pointwise, "/v1/rank", **GROUP)["strengths"], abs=1e-4)
    assert [row[:5] for row in ranked["win_matrix"][:5]] == [[None] * 5] * 5
    alone = post(pointwise, "/v1/rewards", **group | {"responses": RESPONSES[:1]}, scale="unit")
    assert alone["rewards"] == pytest.approx(wins[:1], abs=1e-4)


def test_a_full_group_costs_one_sequence_for_each_response_and_is_no_case_of_the_limit_on_comparisons(
    pointwise: Served,
) -> None:
    responses = [f"answer {i}" for i in range(128)]
    assert post(pointwise, "/v1/rank", prompt=PROMPT, responses=responses)["usage"]["sequences"] == 128


def test_messages_are_read_as_in_comparisons(pointwise: Served) -> None:
    prompt = [{"role": "user", "content": PROMPT}]
    response = [{"role": "assistant", "content": [{"type": "text", "text": "Four."}]}]
    assert score(pointwise, prompt=prompt, responses=[response]) == score(pointwise, responses=["Four."])


def test_the_domain_and_an_instruction_change_the_score(pointwise: Served, response_scorer: Scorer) -> None:
    for options in ({"domain": "safety"}, {"instruction": "Answer in French."}):
        expected = response_scorer.score_responses(PROMPT, RESPONSES, **options)
        margins = post(pointwise, "/v1/rank", **GROUP, **options)["strengths"]
        assert margins == pytest.approx(
            rank_scores(expected, response_scorer.temperature).strengths.values.tolist(), abs=1e-4
        )
        assert score(pointwise, **options)["results"] != score(pointwise)["results"]


BAD = {
    "both forms": {"response": "x"},
    "neither form": {"responses": None},
    "no responses": {"responses": []},
    "an empty one": {"responses": ["x", ""]},
    "too many": {"responses": ["x"] * 1001},
    "no text": {"responses": ["x", 7]},
    "a text for the list": {"responses": "x"},
    "unknown domain": {"domain": "cooking"},
    "an option of comparisons": {"swap": "on"},
    "a strategy": {"strategy": "swiss"},
}


@pytest.mark.parametrize("wrong", BAD.values(), ids=list(BAD))
def test_bad_input_is_a_422_with_a_reason(pointwise: Served, wrong: dict[str, Any]) -> None:
    reply = pointwise.client.post("/v1/score", json=GROUP | wrong)
    assert reply.status_code == 422, reply.text
    error = reply.json()["error"]
    assert error["type"] in ("invalid_request", "unknown_domain")
    assert len(error["message"].split()) > 2


def test_a_model_that_reads_pairs_refuses_a_score_and_names_the_alternative(served: Served) -> None:
    reply = served.client.post("/v1/score", json=GROUP)
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "not_pointwise")
    assert "/v1/rewards" in reply.json()["error"]["message"]


def test_models_name_what_they_read(pointwise: Served, served: Served) -> None:
    (card,), manifest = pointwise.client.get("/v1/models").json()["models"], pointwise.pipeline.manifest
    scale = manifest.score_scale and manifest.score_scale.model_dump()
    assert (card["reads"], card["head"], card["score_scale"]) == ("response", "score", scale)
    (pairs,) = served.client.get("/v1/models").json()["models"]
    assert (pairs["reads"], pairs["head"], pairs["score_scale"]) == ("pair", "cloze", None)


def test_metrics_count_single_responses_and_no_preferences(fresh_pointwise: Served) -> None:
    before = fresh_pointwise.series()
    reply = score(fresh_pointwise, responses=RESPONSES[:3])
    change = moved(fresh_pointwise, before)
    for stage in STAGES:
        assert change[key("tinyrm_stage_duration_seconds_count", stage=stage)] == 3
    assert change[key("tinyrm_requests_total", endpoint="score", status="200")] == 1
    assert change[key("tinyrm_batch_items_sum")] == 3
    assert change[key("tinyrm_tokens_total", kind="real")] == reply["usage"]["tokens"]
    assert change[key("tinyrm_gflops_total", formula="exact")] == pytest.approx(reply["usage"]["gflops"])
    assert not {name for name, _ in change} & {"tinyrm_margin_count", "tinyrm_preferences_total"}
    if fresh_pointwise.pipeline.manifest.score_scale:
        assert change[key("tinyrm_score_count")] == 3
        below = sum(one["score"] <= 0 for one in reply["results"])
        assert change.get(key("tinyrm_score_bucket", le="0.0"), 0) == below
    fresh_pointwise.compare()
    compared = moved(fresh_pointwise, before)
    assert compared[key("tinyrm_margin_count")] == 1
    assert not {name for name, _ in compared} & {
        "tinyrm_swapped_comparisons_total",
        "tinyrm_first_position_margin_count",
    }


def test_truncated_responses_are_counted(fresh_pointwise: Served) -> None:
    before = fresh_pointwise.series()
    (result,) = score(fresh_pointwise, responses=["word " * 600])["results"]
    change = moved(fresh_pointwise, before)
    assert change[key("tinyrm_truncated_tokens_total", text="response")] == result["truncated"]["response"] > 0
    assert change[key("tinyrm_truncated_comparisons_total")] == 1


def test_a_deadline_that_passes_is_a_504_and_leaves_nothing_behind(pointwise: Served) -> None:
    headers = {"X-Request-Timeout-Ms": "1"}
    reply = pointwise.client.post("/v1/score", json=GROUP | {"responses": ["x " * 300] * 128}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["type"]) == (504, "deadline_exceeded")
    assert score(pointwise)["usage"]["sequences"] == len(RESPONSES)
    assert pointwise.metric("tinyrm_queue_items") == 0


def test_the_responses_of_a_client_that_has_left_are_never_run(
    fresh_pointwise: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, run = threading.Event(), type(fresh_pointwise.engine).run
    ran: list[int] = []

    def wait(engine: Any, sequences: Any) -> Any:
        assert gate.wait(PATIENCE_S)
        ran.append(len(sequences))
        return run(engine, sequences)

    async def ask() -> None:
        await score_responses(fresh_pointwise.pipeline, Question(PROMPT), ["long " * 200] * 100)

    monkeypatch.setattr(type(fresh_pointwise.engine), "run", wait)
    assert fresh_pointwise.client.portal is not None
    waiting = fresh_pointwise.client.portal.start_task_soon(ask)
    wait_until(lambda: fresh_pointwise.metric("tinyrm_queue_items") > 0)
    waiting.cancel()
    wait_until(lambda: fresh_pointwise.metric("tinyrm_queue_items") == 0)
    gate.set()
    assert score(fresh_pointwise)["usage"]["sequences"] == len(RESPONSES)
    assert sum(ran) < 20


@pytest.mark.parametrize("path", ["/v1/score", "/v1/rank", "/v1/compare"])
def test_an_instruction_that_the_template_has_no_place_for_is_refused(fresh_pointwise: Served, path: str) -> None:
    pipeline = fresh_pointwise.pipeline
    spec = pipeline.manifest.spec
    segments = tuple(segment for segment in spec.template.segments if "{instruction}" not in segment)
    bare = spec.template.model_copy(update={"segments": segments})
    without = spec.model_copy(update={"template": bare})
    pipeline.manifest = pipeline.manifest.model_copy(update={"spec": without})
    body = PAIR if path == "/v1/compare" else GROUP
    reply = fresh_pointwise.client.post(path, json=body | {"instruction": "Which one rhymes?"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "invalid_input")
    assert "instruction" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/score", "/v1/rank", "/v1/compare"])
def test_an_engine_that_fails_fails_the_whole_request_once(
    fresh_pointwise: Served, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    body = PAIR if path == "/v1/compare" else GROUP
    with monkeypatch.context() as broken:
        broken.setattr(type(fresh_pointwise.engine), "run", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        reply = fresh_pointwise.client.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "engine_failed")
    assert fresh_pointwise.client.post(path, json=body).status_code == 200


def test_a_logit_that_is_not_finite_is_an_error_of_the_engine(
    fresh_pointwise: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(_: object, sequences: Any) -> Any:
        return np.full((len(sequences), 1), np.nan, dtype=np.float32)

    before = fresh_pointwise.metric("tinyrm_engine_errors_total")
    monkeypatch.setattr(type(fresh_pointwise.engine), "run", nan)
    reply = fresh_pointwise.client.post("/v1/score", json=GROUP | {"responses": ["x"]})
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "engine_failed")
    assert fresh_pointwise.metric("tinyrm_engine_errors_total") == before + 1


def test_a_service_whose_default_is_auto_starts_with_a_model_that_has_no_orders(response_bundle_folder: Path) -> None:
    with serve(Settings(model=response_bundle_folder, default_swap="auto")) as one:
        assert one.compare()["usage"]["sequences"] == 2
        assert post(one, "/v1/rank", **GROUP)["usage"]["sequences"] == len(RESPONSES)


def test_domains_may_have_models_of_both_kinds(bundle_folder: Path, response_bundle_folder: Path) -> None:
    settings = Settings(model=bundle_folder, specialists=f"safety={response_bundle_folder}")
    with serve(settings) as both:
        pairs, alone = (post(both, "/v1/rank", **GROUP, domain=domain) for domain in ("general", "safety"))
        assert (pairs["comparisons"], pairs["usage"]["sequences"]) == (10, 20)
        assert (alone["comparisons"], alone["usage"]["sequences"]) == (0, 5)
        assert pairs["model"] != alone["model"]
        items = [PAIR | {"domain": domain} for domain in ("general", "safety")]
        reply = post(both, "/v1/compare/batch", items=items)
        assert [one["model"] for one in reply["results"]] == [pairs["model"], alone["model"]]
        assert score(both, domain="safety")["model"] == alone["model"]
        refused = both.client.post("/v1/score", json=GROUP | {"domain": "general"})
        assert refused.json()["error"]["type"] == "not_pointwise"
