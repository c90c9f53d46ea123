"""Test the service over bundles that read sets: one sequence for any number of responses, split only if it must be.

`tied` reads responses that see each other, `shared` responses that see only the prompt, which they share.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.app import check_settings
from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tests.service.test_dialects_trainers import TRAINERS, at_once, openrlhf
from tests.service.test_metrics import key, moved
from tests.service.test_ranking import GROUP, PROMPT, RESPONSES
from tests.service.test_score import post
from tinyrm.cascade import Cascade
from tinyrm.errors import InvalidInput, InvalidSettings
from tinyrm.flops import set_flops
from tinyrm.ranking import rank_scores, sigmoid
from tinyrm.scorer import Scorer

# A bundle of its own takes half a minute to export.
SLOW = pytest.mark.slow
WORDS = ["two", "four", "five", "apples", "and", "pears", "I", "cannot", "help"]
# Another sequence adds floats in another order, no more than that.
TOLERANCE = 1e-4


def texts(count: int, longest: int = 10) -> list[str]:
    draw = random.Random(count)
    return [f"{i} {' '.join(draw.choices(WORDS, k=draw.randint(1, longest)))}" for i in range(count)]


@pytest.fixture(scope="module")
def tied(set_bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=set_bundle_folder, dialects=f"{TRAINERS},rerank", group_size=4)) as one:
        yield one


@pytest.fixture(scope="module")
def shared(shared_prompt_bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=shared_prompt_bundle_folder, dialects=f"{TRAINERS},rerank")) as one:
        yield one


@pytest.fixture(scope="module", params=[pytest.param("tied", marks=SLOW), "shared"])
def either(request: pytest.FixtureRequest) -> Served:
    served: Served = request.getfixturevalue(request.param)
    return served


def rank(served: Served, **changes: Any) -> Any:
    return post(served, "/v1/rank", **GROUP | changes)


# One sequence


@pytest.mark.parametrize("count", [2, 3, 7, 16, 32])
def test_a_permutation_of_the_responses_permutes_the_scores_to_the_bit(either: Served, count: int) -> None:
    own = texts(count)
    before = either.metric("tinyrm_batch_items_sum")
    reply = rank(either, responses=own, win_matrix=True)
    assert (reply["usage"]["sequences"], reply["sets"], reply["comparisons"]) == (1, 1, 0)
    assert either.metric("tinyrm_batch_items_sum") == before + 1
    assert np.ptp(reply["strengths"]) > 0.01, "scores all alike would pass for any"
    for seed in range(3):
        order = random.Random(seed).sample(range(count), count)
        other = rank(either, responses=[own[i] for i in order], win_matrix=True)
        assert other["strengths"] == pytest.approx([reply["strengths"][i] for i in order], abs=1e-12), "but for a mean"
        matrix = [[reply["win_matrix"][i][j] for j in order] for i in order]
        assert other["win_matrix"] == matrix
        assert [order[i] for i in other["order"]] == reply["order"]
        assert other["usage"] == reply["usage"]


def test_a_comparison_is_one_sequence_and_mirrored_to_the_bit(either: Served) -> None:
    replies = [either.compare(swap=swap) for swap in ("on", "off", "auto", None)]
    assert replies == replies[:1] * 4
    assert replies[0]["usage"]["sequences"] == 1
    assert replies[0]["orders"] is None
    assert replies[0]["margin"] != 0
    backward = either.compare(response_a=PAIR["response_b"], response_b=PAIR["response_a"])
    assert backward["margin"] == -replies[0]["margin"]
    assert backward["probability_b"] == replies[0]["probability_a"]
    assert backward["usage"] == replies[0]["usage"]
    assert either.compare(response_a="same", response_b="same")["preferred"] == "tie"
    two = rank(either, responses=[PAIR["response_a"], PAIR["response_b"]], win_matrix=True)
    assert two["win_matrix"][0][1] == replies[0]["probability_a"], "a group of two is that comparison"


@pytest.mark.parametrize("strategy", ["round_robin", "swiss", "knockout"])
def test_a_ranking_is_that_of_the_library_whatever_the_strategy(either: Served, strategy: str) -> None:
    scorer = Scorer.open(folder_of(either))
    ranking = scorer.rank(PROMPT, RESPONSES)
    logits = scorer.score_responses(PROMPT, RESPONSES)
    reply = rank(either, strategy=strategy)
    assert reply["usage"]["sequences"] == 1
    assert reply["order"] == ranking.order
    assert reply["strengths"] == pytest.approx(ranking.strengths.values.tolist(), abs=TOLERANCE)
    expected = rank_scores(logits, scorer.temperature)
    assert reply["strengths"] == pytest.approx(expected.strengths.values.tolist(), abs=TOLERANCE)
    margin = scorer.compare(**PAIR, swap=False).margin
    assert either.compare()["margin"] == pytest.approx(margin, abs=TOLERANCE)


def folder_of(served: Served) -> Path:
    return next(iter(served.state.registry.pipelines))


def test_equal_responses_are_read_once(either: Served) -> None:
    one, twice = rank(either), rank(either, responses=[*RESPONSES, RESPONSES[1], RESPONSES[0]])
    assert twice["usage"] == one["usage"]
    assert twice["strengths"][5:] == [twice["strengths"][1], twice["strengths"][0]]
    differences = np.subtract.outer(one["strengths"], one["strengths"])
    np.testing.assert_allclose(
        np.subtract.outer(twice["strengths"][:5], twice["strengths"][:5]), differences, atol=1e-9
    )


@SLOW
def test_what_responses_see_of_each_other_moves_their_scores(tied: Served, shared: Served) -> None:
    def moved_by_others(served: Served) -> float:
        margin = served.compare()["margin"]
        among = rank(served, responses=[PAIR["response_a"], PAIR["response_b"], "4", "five apples"])["strengths"]
        return abs(float(among[0] - among[1] - margin))

    assert moved_by_others(shared) < TOLERANCE < 10 * TOLERANCE < moved_by_others(tied)


def test_a_reference_is_read_beside_the_responses(either: Served) -> None:
    group = GROUP | {"strategy": "reference", "reference": "Four."}
    ranked = post(either, "/v1/rank", **group, win_matrix=True)
    assert (ranked["usage"]["sequences"], len(ranked["strengths"])) == (1, len(RESPONSES))
    unit = post(either, "/v1/rewards", **group, scale="unit")
    assert unit["rewards"] == [row[-1] for row in ranked["win_matrix"][:-1]]
    with_it = rank(either, responses=[*RESPONSES, "Four."], win_matrix=True)["win_matrix"]
    assert unit["rewards"] == [row[-1] for row in with_it[:-1]]


def test_rewards_are_those_of_the_ranking(either: Served) -> None:
    ranked = rank(either, win_matrix=True)
    zero_mean, unit = (post(either, "/v1/rewards", **GROUP, scale=scale) for scale in ("zero_mean", "unit"))
    assert zero_mean["rewards"] == ranked["strengths"]
    matrix = [[p for p in row if p is not None] for row in ranked["win_matrix"]]
    assert unit["rewards"] == pytest.approx([np.mean(row) for row in matrix])
    assert (zero_mean["sets"], zero_mean["usage"]) == (1, ranked["usage"])


def test_the_cost_is_that_of_a_prompt_that_is_read_once(either: Served) -> None:
    before = either.series()
    reply = rank(either)
    change = moved(either, before)
    encoder, manifest = either.pipeline.texts.encoder, either.pipeline.manifest
    read = encoder.tokenize(manifest.spec.instruction(None), PROMPT, RESPONSES)
    (sequence,) = encoder.assemble_sets(read, range(len(RESPONSES)))
    prompt, *lengths = encoder.special.part_lengths(sequence.input_ids)
    reading = manifest.head.sets
    assert reading
    flops = set_flops(
        manifest.geometry, prompt, lengths, others=reading.others, crossing_layers=0 if reading.scores_alone else 1
    )
    assert reply["usage"] == {"sequences": 1, "tokens": len(sequence), "gflops": pytest.approx(flops / 1e9)}
    assert change[key("tinyrm_tokens_total", kind="real")] == len(sequence)
    assert change[key("tinyrm_gflops_total", formula="exact")] == pytest.approx(flops / 1e9)
    assert "tinyrm_preferences_total" not in {name for name, _ in change}


@SLOW
def test_models_say_what_they_read(tied: Served, shared: Served) -> None:
    cards = [served.client.get("/v1/models").json()["models"][0] for served in (tied, shared)]
    assert [(card["reads"], card["scores_alone"]) for card in cards] == [("set", False), ("set", True)]


def test_dropped_tokens_are_those_of_each_response(either: Served) -> None:
    long = "word " * 600
    forward = either.compare(response_a=long, response_b="short")["truncated"]
    backward = either.compare(response_a="short", response_b=long)["truncated"]
    assert forward["response_b"] == backward["response_a"] == 0 < forward["response_a"] == backward["response_b"]
    assert rank(either, responses=["short", long])["truncated_tokens"] == sum(forward.values())


# Several sets


def test_responses_beyond_one_sequence_are_split_and_the_reply_says_so(either: Served) -> None:
    own = texts(40, longest=60)
    reply = rank(either, responses=own)
    assert reply["sets"] == reply["usage"]["sequences"] > 1
    encoder = either.pipeline.texts.encoder
    assert reply["usage"]["tokens"] <= reply["sets"] * encoder.max_set_tokens
    order = random.Random(1).sample(range(40), 40)
    other = rank(either, responses=[own[i] for i in order])
    assert other["strengths"] == pytest.approx([reply["strengths"][i] for i in order], abs=1e-12)
    assert post(either, "/v1/rewards", **GROUP | {"responses": own})["sets"] == reply["sets"]


def test_nothing_is_lost_by_a_split_where_scores_are_those_of_each_response(shared: Served) -> None:
    own = texts(40, longest=60)
    strengths = rank(shared, responses=own)["strengths"]
    for i, j in ((0, 39), (5, 20)):
        margin = shared.compare(prompt=PROMPT, response_a=own[i], response_b=own[j])["margin"]
        assert strengths[i] - strengths[j] == pytest.approx(margin, abs=TOLERANCE)


@SLOW
def test_a_sequence_is_no_longer_than_a_batch_or_the_queue(set_bundle_folder: Path) -> None:
    for limits in ({"max_batch_tokens": 600}, {"max_queue_tokens": 600}):
        with serve(Settings(model=set_bundle_folder, **limits)) as small:  # type: ignore[arg-type]
            reply = rank(small, responses=texts(32, longest=60))
            assert reply["usage"]["tokens"] / reply["sets"] <= 600
            assert reply["sets"] > 2


# Scores


def test_a_score_is_that_of_the_response_whatever_the_others_are(shared: Served) -> None:
    own = texts(12)
    together = post(shared, "/v1/score", prompt=PROMPT, responses=own)
    assert together["usage"]["sequences"] == 1
    alone = [post(shared, "/v1/score", prompt=PROMPT, response=text) for text in own]
    for one, among in zip(alone, together["results"], strict=True):
        (result,) = one["results"]
        assert result["raw"] == pytest.approx(among["raw"], abs=TOLERANCE)
        assert result["tokens"] == among["tokens"] == one["usage"]["tokens"]
    assert together["usage"]["tokens"] < sum(result["tokens"] for result in together["results"])
    scorer = Scorer.open(folder_of(shared))
    expected = scorer.score_texts([(scorer.spec.instruction(None), PROMPT, text) for text in own])
    assert [result["raw"] for result in together["results"]] == pytest.approx(expected.tolist(), abs=TOLERANCE)
    dropped = post(shared, "/v1/score", prompt=PROMPT, responses=["short", "word " * 600])["results"]
    assert [result["truncated"]["response"] > 0 for result in dropped] == [False, True]


@SLOW
def test_scores_that_depend_on_the_others_are_refused_with_the_reason(tied: Served, set_bundle_folder: Path) -> None:
    reply = tied.client.post("/v1/score", json=GROUP)
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "not_pointwise")
    assert "beside each other" in reply.json()["error"]["message"]
    with pytest.raises(InvalidInput, match="none is read alone"):
        Scorer.open(set_bundle_folder).score_texts([("", PROMPT, "4")])


# Lists


def test_a_batch_of_mixed_sizes_has_the_results_of_single_comparisons(either: Served) -> None:
    items = [PAIR, PAIR | {"response_b": "word " * 300}, PAIR | {"domain": "cooking"}, PAIR | {"response_a": ""}]
    items += [PAIR | {"response_a": text} for text in texts(6)]
    reply = post(either, "/v1/compare/batch", items=items)
    for item, result in zip(items, reply["results"], strict=True):
        if "error" not in result:
            assert result == either.compare(**item)
    assert [result["error"]["type"] for result in reply["results"][2:4]] == ["unknown_domain", "invalid_request"]
    assert reply["usage"]["sequences"] == 8


@SLOW
def test_logits_that_are_missing_are_an_error_of_the_engine(
    set_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Settings(model=set_bundle_folder)) as one:
        run = type(one.engine).run
        with monkeypatch.context() as broken:
            broken.setattr(type(one.engine), "run", lambda engine, sequences: run(engine, sequences)[:, :-1])
            reply = one.client.post("/v1/rank", json=GROUP)
            assert (reply.status_code, reply.json()["error"]["type"]) == (500, "engine_failed")
        assert rank(one)["sets"] == 1


# Cascades


def test_a_set_whose_scores_stand_alone_is_the_first_stage_of_a_cascade(
    shared_prompt_bundle_folder: Path, bundle_folder: Path
) -> None:
    group = GROUP | {"strategy": "cascade", "top": 3}
    with serve(Settings(model=bundle_folder, more_models=str(shared_prompt_bundle_folder))) as both:
        reply = post(both, "/v1/rank", **group)
    ranking = Cascade(Scorer.open(shared_prompt_bundle_folder), Scorer.open(bundle_folder), top=3).rank(
        PROMPT, RESPONSES
    )
    assert reply["order"] == ranking.order
    assert (reply["usage"]["sequences"], reply["comparisons"], reply["sets"]) == (1 + 6, 3, 1)


@SLOW
def test_a_set_whose_scores_depend_on_each_other_is_no_stage(set_bundle_folder: Path, bundle_folder: Path) -> None:
    with serve(Settings(model=bundle_folder, more_models=str(set_bundle_folder))) as both:
        reply = both.client.post("/v1/rank", json=GROUP | {"strategy": "cascade"})
        assert (reply.status_code, reply.json()["error"]["type"]) == (422, "no_cascade")
        assert "reads a set whose scores depend on each other" in reply.json()["error"]["message"]
    with pytest.raises(InvalidInput, match="depend on each other"):
        Cascade(Scorer.open(set_bundle_folder), Scorer.open(bundle_folder))


# Dialects


def test_samples_are_scored_at_once_if_scores_stand_alone(shared: Served) -> None:
    for text in RESPONSES[:2]:
        score = post(shared, "/v1/score", prompt=PROMPT, response=text)["results"][0]
        reward = post(shared, "/get_reward", **openrlhf(text))
        assert reward["rewards"] == [score["raw"] if score["score"] is None else score["score"]]
        assert reward["extra_logs"]["partial"] == [0.0]


@SLOW
def test_samples_gather_in_cohorts_if_scores_depend_on_each_other(tied: Served) -> None:
    own = texts(4)
    before = tied.metric("tinyrm_batch_items_sum")
    replies = at_once(tied, "/get_reward", [openrlhf(text) for text in own])
    assert tied.metric("tinyrm_batch_items_sum") == before + 1
    expected = post(tied, "/v1/rewards", prompt=PROMPT, responses=own)["rewards"]
    assert [reply.json()["rewards"][0] for reply in replies] == pytest.approx(expected, abs=1e-9)


@SLOW
def test_cohorts_of_several_processes_are_refused_at_the_start(
    set_bundle_folder: Path, shared_prompt_bundle_folder: Path
) -> None:
    with pytest.raises(InvalidSettings, match="does not score responses alone"):
        check_settings(Settings(model=set_bundle_folder, dialects="openrlhf", workers=2))
    check_settings(Settings(model=shared_prompt_bundle_folder, dialects="openrlhf", workers=2))


def test_documents_are_ranked_in_one_sequence(either: Served) -> None:
    documents = texts(5)
    before = either.metric("tinyrm_batch_items_sum")
    reply = post(either, "/v2/rerank", query=PROMPT, documents=documents)
    assert either.metric("tinyrm_batch_items_sum") == before + 1
    ranked = rank(either, responses=documents, win_matrix=True)
    assert [result["index"] for result in reply["results"]] == ranked["order"]
    assert reply["usage"]["total_tokens"] == ranked["usage"]["tokens"]
    if not either.pipeline.scores_alone:
        scores = {result["index"]: result["relevance_score"] for result in reply["results"]}
        strengths = np.array(ranked["strengths"])
        wins = sigmoid(np.subtract.outer(strengths, strengths))
        assert scores[0] == pytest.approx((wins[0].sum() - 0.5) / 4)
