"""Test the dialects with a model that reads responses: each sample has its own score, at once, without a cohort."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.app import check_settings
from service.metrics import STAGES
from service.settings import Settings
from tests.e2e.test_models import changed_copy
from tests.service.conftest import Served, serve
from tests.service.test_dialects_rerank import TEI, TEXTS
from tests.service.test_dialects_trainers import (
    CHATML,
    PROMPT,
    RESPONSES,
    TRAINERS,
    at_once,
    openrlhf,
    response_object,
)
from tests.support.waiting import wait_until
from tinyrm.api import MAX_MATRIX_RESPONSES
from tinyrm.encoding import Encoding
from tinyrm.errors import InvalidBundle, InvalidSettings

ALL = f"{TRAINERS},rerank"
# Of JSON: a number is written so that reading it gives the same one, and `1 + 4 * score` is computed once more.
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def lone(response_bundle_folder: Path) -> Iterator[Served]:
    """Return an application with the default size of cohorts, whose samples would wait for one another for long."""
    with serve(Settings(model=response_bundle_folder, dialects=ALL, cohort_timeout_s=600)) as one:
        yield one


def verl(response: str, **more: Any) -> dict[str, Any]:
    return {"model": "/models/rm", "input": f"{CHATML}{response}<|im_end|>\n", **more}


def rollout(response: str) -> dict[str, Any]:
    return {"responses_create_params": {"input": PROMPT}, "response": response_object(response)}


def group(responses: Sequence[str]) -> dict[str, Any]:
    return {
        "conversation_history": [{"role": "user", "content": PROMPT}],
        "response_objs": [response_object(text) for text in responses],
    }


def lists(responses: Sequence[str], prompts: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a body of OpenRLHF with several samples."""
    bodies = [
        openrlhf(text, prompt=prompt)
        for text, prompt in zip(responses, prompts or [CHATML] * len(responses), strict=True)
    ]
    return {name: [body[name][0] for body in bodies] for name in ("query", "prompts", "labels")}


def post(served: Served, path: str, body: Any) -> Any:
    reply = served.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def score(served: Served, response: str, prompt: str = PROMPT, **options: Any) -> float:
    """Return `score` of /v1/score."""
    body = {"prompt": prompt, "response": response, **options}
    value: float = post(served, "/v1/score", body)["results"][0]["score"]
    return value


def probability(served: Served, reward: float) -> float:
    """Return what docs/dialects.md states: the probability to beat the mean response of the held-out ones."""
    (card,) = served.client.get("/v1/models").json()["models"]
    return 1 / (1 + math.exp(-reward * card["score_scale"]["std"] / card["temperature"]))


# How each trainer sends one sample, and where it reads the reward or the probability.
REWARDS = {
    "openrlhf": ("/get_reward", openrlhf, lambda reply: reply["rewards"][0]),
    "slime": ("/rm", lambda text: {"prompt": CHATML, "response": text, "label": None}, lambda reply: reply),
    "vllm": (
        "/classify",
        lambda text: verl(text, use_activation=False),
        lambda reply: reply["data"][-1]["probs"][-1],
    ),
    "sglang": ("/v1/embeddings", verl, lambda reply: reply["data"][-1]["embedding"][-1]),
    "tei": (
        "/rerank",
        lambda text: {"query": PROMPT, "texts": [text], "raw_scores": True},
        lambda reply: reply[0]["score"],
    ),
}
PROBABILITIES = {
    "openrlhf": ("/get_reward", openrlhf, lambda reply: reply["extra_logs"]["p_win"][0]),
    "vllm": ("/classify", verl, lambda reply: reply["data"][-1]["probs"][-1]),
    "nemo-gym": ("/verify", rollout, lambda reply: (reply["reward"] - 1) / 4),
    "nemo-gym group": ("/compare", lambda text: group([text]), lambda reply: (reply["rewards"][0] - 1) / 4),
    "cohere": (
        "/v2/rerank",
        lambda text: {"query": PROMPT, "documents": [text]},
        lambda reply: reply["results"][0]["relevance_score"],
    ),
}


@pytest.mark.parametrize("trainer", REWARDS)
def test_the_reward_of_a_sample_is_the_score_of_v1_score(lone: Served, trainer: str) -> None:
    path, body, read = REWARDS[trainer]
    rewards = [read(post(lone, path, body(text))) for text in RESPONSES]
    assert rewards == [score(lone, text) for text in RESPONSES]
    assert len(set(rewards)) == len(RESPONSES), "rewards all alike would pass for any"


@pytest.mark.parametrize("trainer", PROBABILITIES)
def test_its_probability_is_to_beat_the_mean_response(lone: Served, trainer: str) -> None:
    path, body, read = PROBABILITIES[trainer]
    found = [read(post(lone, path, body(text))) for text in RESPONSES]
    assert found == pytest.approx([probability(lone, score(lone, text)) for text in RESPONSES], abs=ROUNDING)
    assert max(found) - min(found) > 1e-3


def test_replies_have_the_other_fields_of_their_formats(lone: Served) -> None:
    reply = post(lone, "/get_reward", openrlhf("4"))
    assert reply["extra_logs"] == {"p_win": reply["scores"], "partial": [0.0]}
    (item,) = post(lone, "/classify", verl("4"))["data"]
    assert (item["index"], item["partial"]) == (0, False)
    assert post(lone, "/verify", rollout("4")) | {"reward": 0} == rollout("4") | {"reward": 0, "partial": False}
    tokens = post(lone, "/v1/score", {"prompt": PROMPT, "response": "4"})["usage"]["tokens"]
    assert post(lone, "/classify", verl("4"))["usage"]["total_tokens"] == tokens
    assert post(lone, "/rerank", {"query": PROMPT, "documents": ["4"]})["usage"]["total_tokens"] == tokens


def test_differences_of_rewards_are_log_odds_after_the_documented_factor(lone: Served) -> None:
    (card,) = lone.client.get("/v1/models").json()["models"]
    a, b = (post(lone, "/get_reward", openrlhf(text))["rewards"][0] for text in RESPONSES[:2])
    margin = lone.compare(prompt=PROMPT, response_a=RESPONSES[0], response_b=RESPONSES[1])["margin"]
    assert (a - b) * card["score_scale"]["std"] / card["temperature"] == pytest.approx(margin, rel=1e-6)
    assert abs(margin) > 0.01


def test_without_a_scale_the_reward_is_the_logit(response_bundle_folder: Path, tmp_path: Path) -> None:
    changed_copy(response_bundle_folder, tmp_path / "toy", score_scale=None, temperature=2.0)
    with serve(Settings(model=tmp_path / "toy", dialects="openrlhf")) as served:
        reply = post(served, "/get_reward", openrlhf("4"))
        (result,) = post(served, "/v1/score", {"prompt": PROMPT, "response": "4"})["results"]
        assert result["score"] is None
        assert reply["rewards"] == [result["raw"]]
        assert reply["scores"] == pytest.approx([1 / (1 + math.exp(-result["raw"] / 2))], abs=ROUNDING)


# At once


@dataclass
class Runs:
    """Count the sequences of each run of an engine."""

    engine: Any
    sizes: list[int] = field(default_factory=list)

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        self.sizes.append(len(sequences))
        logits: NDArray[np.float32] = type(self.engine).run(self.engine, sequences)
        return logits


@pytest.fixture
def runs(lone: Served, monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs(lone.engine)
    monkeypatch.setattr(lone.engine, "run", runs.run)
    return runs


SAMPLES = {name: (path, body("4")) for name, (path, body, _) in (REWARDS | PROBABILITIES).items()}


@pytest.mark.parametrize("trainer", SAMPLES)
def test_a_sample_costs_one_sequence_and_meets_no_cohort(
    lone: Served, runs: Runs, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    monkeypatch.setattr(lone.state, "cohorts", None)
    post(lone, *SAMPLES[trainer])
    assert runs.sizes == [1]


def test_group_options_are_accepted_and_separate_nothing(lone: Served) -> None:
    """A trainer's URL stays as it was with a model that reads pairs."""
    reply = post(lone, "/get_reward?group_size=16&group_id=mine", openrlhf("4"))
    assert reply["rewards"] == [score(lone, "4")]


def test_options_of_the_model_hold_for_samples(lone: Served) -> None:
    assert post(lone, "/rm?domain=safety", {"prompt": PROMPT, "response": "4"}) == score(lone, "4", domain="safety")
    principle = "Which response is kinder?"
    graded = post(lone, "/verify", rollout("4") | {"principle": principle})["reward"]
    expected = probability(lone, score(lone, "4", instruction=principle))
    assert (graded - 1) / 4 == pytest.approx(expected, abs=ROUNDING)
    assert score(lone, "4", domain="safety") != score(lone, "4", instruction=principle) != score(lone, "4")


def test_a_label_is_a_reference_unless_labels_are_ignored(lone: Served, runs: Runs) -> None:
    p = lone.compare(prompt=PROMPT, response_a="4", response_b="2 + 2 = 5.")["probability_a"]
    runs.sizes.clear()
    assert post(lone, "/get_reward", openrlhf("4", "2 + 2 = 5."))["rewards"] == pytest.approx([p], abs=1e-9)
    assert runs.sizes == [2]
    ignored = post(lone, "/get_reward?labels=ignore", openrlhf("4", "2 + 2 = 5."))
    assert ignored["rewards"] == [score(lone, "4")]


# Lists and groups


def test_lists_have_the_score_of_each_sample(lone: Served, runs: Runs) -> None:
    prompts = [f"<|im_start|>user\nWhat is {n}?<|im_end|>\n<|im_start|>assistant\n" for n in range(4)]
    expected = [score(lone, text, f"What is {n}?") for n, text in enumerate(RESPONSES)]
    runs.sizes.clear()
    assert post(lone, "/get_reward", lists(RESPONSES, prompts))["rewards"] == expected
    inputs = [f"{prompt}{text}<|im_end|>" for prompt, text in zip(prompts, RESPONSES, strict=True)]
    data = post(lone, "/v1/embeddings", {"input": inputs})["data"]
    assert [item["embedding"][0] for item in data] == expected
    assert sum(runs.sizes) == 8


def test_a_group_scores_each_response_once(lone: Served, runs: Runs) -> None:
    expected = [1 + 4 * probability(lone, score(lone, text)) for text in RESPONSES]
    runs.sizes.clear()
    reply = post(lone, "/compare", group(RESPONSES))
    assert sum(runs.sizes) == len(RESPONSES)
    assert reply["rewards"] == pytest.approx(expected, abs=ROUNDING)
    assert reply["rewards"] == [post(lone, "/verify", rollout(text))["reward"] for text in RESPONSES]
    assert len(reply["comparison_results"]) == 6
    for result in reply["comparison_results"]:
        first, second = RESPONSES[result["response_i"]], RESPONSES[result["response_j"]]
        p = lone.compare(prompt=PROMPT, response_a=first, response_b=second)["probability_a"]
        assert (result["score_1"], result["score_2"]) == pytest.approx((1 + 4 * p, 5 - 4 * p), abs=1e-6)


def test_a_large_group_has_no_list_of_all_its_pairs(lone: Served) -> None:
    """Half a million of them would block the service for seconds."""
    reply = post(lone, "/compare", group([f"x{i}" for i in range(MAX_MATRIX_RESPONSES + 1)]))
    assert (len(reply["rewards"]), reply["comparison_results"]) == (MAX_MATRIX_RESPONSES + 1, [])


def test_a_group_of_none_has_no_rewards(lone: Served) -> None:
    assert post(lone, "/compare", group([]))["rewards"] == []


@pytest.mark.parametrize("raw", [False, True])
def test_relevance_does_not_depend_on_the_other_documents(lone: Served, runs: Runs, raw: bool) -> None:
    ranks = post(lone, "/rerank", TEI | {"raw_scores": raw})
    assert sum(runs.sizes) == len(TEXTS)
    assert ranks == sorted(ranks, key=lambda rank: -rank["score"])
    assert sorted(rank["index"] for rank in ranks) == [0, 1, 2, 3]
    for rank in ranks:
        (alone,) = post(lone, "/rerank", TEI | {"texts": [TEXTS[rank["index"]]], "raw_scores": raw})
        assert alone["score"] == rank["score"]


def test_lists_longer_than_the_queue_wait_for_room_or_are_refused_as_a_whole(response_bundle_folder: Path) -> None:
    """The queue holds four sequences of full length."""
    texts = [f"{n}{' and' * 200}" for n in range(40)]
    narrow: dict[str, Any] = {"max_batch_tokens": 512, "max_queue_tokens": 1024}
    with serve(Settings(model=response_bundle_folder, dialects=TRAINERS, **narrow)) as small:
        reply = post(small, "/v1/score", {"prompt": PROMPT, "responses": texts})
        expected = [result["score"] for result in reply["results"]]
        assert post(small, "/get_reward", lists(texts))["rewards"] == expected
        data = post(small, "/v1/embeddings", {"input": [CHATML + text for text in texts]})["data"]
        assert [item["embedding"][0] for item in data] == expected
        small.pipeline.backend.batcher.max_wait_s = -1.0  # type: ignore[attr-defined]
        for path, body, status in (
            ("/get_reward", lists(texts), 429),
            ("/get_reward", openrlhf("4"), 429),
            ("/v1/embeddings", {"input": [CHATML + text for text in texts]}, 503),
            ("/classify", verl("4"), 503),
            ("/verify", rollout("4"), 429),
        ):
            busy = small.client.post(path, json=body)
            assert (busy.status_code, busy.json()["error"]["type"]) == (status, "overloaded")


def test_a_sample_beyond_its_deadline_is_dropped(lone: Served) -> None:
    body = lists([f"{n} " * 300 for n in range(200)])
    reply = lone.client.post("/get_reward", json=body, headers={"X-Request-Timeout-Ms": "1"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (504, "deadline_exceeded")
    assert lone.metric("tinyrm_queue_items") == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/get_reward?domain=cooking", openrlhf("x"), 422, "unknown_domain"),
        ("/rm?model=other", {"prompt": PROMPT, "response": "x"}, 404, "unknown_model"),
        ("/verify?domain=cooking", rollout("x"), 422, "unknown_domain"),
        ("/rerank", TEI | {"query": ""}, 422, "invalid_request"),
        ("/get_reward?labels=reference", openrlhf("x", {"answer": 4}), 422, "invalid_input"),
        ("/classify", {"input": "no template"}, 422, "invalid_input"),
    ],
)
def test_bad_input_is_refused(lone: Served, path: str, body: Any, status: int, kind: str) -> None:
    reply = lone.client.post(path, json=body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    if isinstance(error, str):  # as text-embeddings-inference writes it
        assert reply.json()["error_type"] == "Validation"
    else:
        assert error["type"] == kind


def test_empty_responses_and_lone_surrogates_are_scored_as_other_dialect_texts_are(lone: Served) -> None:
    assert post(lone, "/get_reward?empty=judge", openrlhf(""))["rewards"] == [score(lone, " ")]
    content = '{"prompt": "What is 2 + 2?", "response": "a \\ud83d"}'
    reply = lone.client.post("/rm", content=content)
    assert (reply.status_code, reply.json()) == (200, score(lone, "a \ufffd"))


def test_empty_responses_score_far_below_the_mean_or_less(lone: Served) -> None:
    empty = post(lone, "/get_reward", openrlhf("<|im_end|>\n"))
    scale = lone.pipeline.manifest.score_scale
    assert scale
    assert empty["rewards"] == [min(-3.0, score(lone, " "))]
    worst = -3 * scale.std / lone.pipeline.manifest.temperature
    assert empty["scores"] == pytest.approx([1 / (1 + np.exp(-worst))])
    both = post(lone, "/compare", group([RESPONSES[0], ""]))["rewards"]
    assert both == pytest.approx([post(lone, "/compare", group([text]))["rewards"][0] for text in (RESPONSES[0], "")])
    labelled = post(lone, "/get_reward", openrlhf("", "The sum is 4."))["rewards"]
    assert labelled[0] <= 1 / (1 + np.exp(3.0)) + 1e-9


def test_metrics_count_a_sample_as_a_response_and_no_cohort(lone: Served) -> None:
    names = ("tinyrm_batch_items_sum", "tinyrm_score_count", "tinyrm_stage_duration_seconds_count")

    def totals() -> list[float]:
        series = lone.series()
        return [sum(value for (one, _), value in series.items() if one == name) for name in names]

    before = totals()
    post(lone, "/get_reward", openrlhf("4"))
    assert [after - one for after, one in zip(totals(), before, strict=True)] == [1, 1, len(STAGES)]
    assert sum(lone.metric("tinyrm_cohorts_completed_total", reason=end) for end in ("full", "deadline", "drain")) == 0


# Models of both kinds


@pytest.mark.parametrize("default", ["pair", "response"])
def test_each_request_is_scored_as_its_model_reads(
    bundle_folder: Path, response_bundle_folder: Path, default: str
) -> None:
    """Let the first sample of a cohort wait while a sample for the other model is answered."""
    folders = [bundle_folder, response_bundle_folder]
    model, specialist = folders if default == "pair" else folders[::-1]
    pairs, alone = ("general", "safety") if default == "pair" else ("safety", "general")
    settings = Settings(
        model=model, specialists=f"safety={specialist}", dialects=ALL, group_size=2, cohort_timeout_s=600
    )
    with serve(settings) as both, ThreadPoolExecutor(1) as waiting:
        first = waiting.submit(post, both, f"/get_reward?domain={pairs}", openrlhf("4"))
        wait_until(lambda: both.metric("tinyrm_cohort_samples") == 1)
        for path, body in (SAMPLES["openrlhf"], SAMPLES["slime"], SAMPLES["vllm"], SAMPLES["nemo-gym"]):
            post(both, f"{path}?domain={alone}", body)
        reward = post(both, f"/get_reward?domain={alone}", openrlhf("4"))["rewards"]
        assert reward == [score(both, "4", domain=alone)]
        assert not first.done()
        second = post(both, f"/get_reward?domain={pairs}", openrlhf("5"))
        expected = post(both, "/v1/rewards", {"prompt": PROMPT, "responses": ["4", "5"], "domain": pairs})["rewards"]
        assert [first.result()["rewards"][0], second["rewards"][0]] == pytest.approx(expected, abs=1e-4)
        for domain, size in ((pairs, 0.5), (alone, None)):  # the mean of two win rates is one half
            ranks = post(both, f"/rerank?domain={domain}", {"query": PROMPT, "texts": ["4", "5"]})
            mean = sum(rank["score"] for rank in ranks) / 2
            assert (mean == pytest.approx(0.5, abs=1e-6)) == (size is not None)


# Several processes


def test_one_of_several_processes_scores_alone_what_can_be_and_names_what_cannot(
    bundle_folder: Path, response_bundle_folder: Path
) -> None:
    settings = Settings(model=response_bundle_folder, specialists=f"safety={bundle_folder}", dialects=ALL, workers=2)
    check_settings(settings)
    with serve(settings) as one:
        assert one.state.cohorts is None
        assert post(one, "/get_reward", openrlhf("4"))["rewards"] == [score(one, "4")]
        for path, body in (SAMPLES["openrlhf"], SAMPLES["slime"], SAMPLES["sglang"], SAMPLES["nemo-gym"]):
            reply = one.client.post(f"{path}?domain=safety", json=body)
            assert (reply.status_code, reply.json()["error"]["type"]) == (422, "not_pointwise")
            assert "several processes" in reply.json()["error"]["message"]
        p = one.compare(prompt=PROMPT, response_a="4", response_b="It is 5.", domain="safety")["probability_a"]
        labelled = post(one, "/get_reward?domain=safety", openrlhf("4", "It is 5."))
        assert labelled["rewards"] == pytest.approx([p], abs=1e-6), "a reference needs no cohort"
        assert len(post(one, "/compare?domain=safety", group(RESPONSES))["rewards"]) == 4, "nor a whole group"
        assert one.client.portal
        one.client.portal.call(one.state.drain)
        stopped = one.client.post("/get_reward", json=openrlhf("4"))
        assert (stopped.status_code, stopped.json()["error"]["type"]) == (503, "shutting_down")


def test_cohorts_of_several_processes_are_refused_at_the_start_if_every_model_reads_pairs(
    bundle_folder: Path, response_bundle_folder: Path, tmp_path: Path
) -> None:
    changed_copy(bundle_folder, tmp_path / "other", name="other")
    both: dict[str, Any] = {"model": bundle_folder, "specialists": f"safety={tmp_path / 'other'}"}
    with pytest.raises(InvalidSettings, match=r"TINYRM_DIALECTS=slime needs TINYRM_WORKERS=1.* toy@\w+ and other@\w+:"):
        check_settings(Settings(dialects="slime,rerank", workers=2, **both))
    check_settings(Settings(dialects="rerank", workers=2, **both))
    check_settings(Settings(dialects=ALL, workers=2, model=response_bundle_folder))
    with pytest.raises(InvalidBundle, match="is not a folder"):
        check_settings(Settings(dialects="slime", workers=2, model=tmp_path / "missing"))


def test_samples_at_once_do_not_wait_for_each_other(lone: Served) -> None:
    replies = at_once(lone, "/get_reward", [openrlhf(text) for text in RESPONSES])
    assert [reply.json()["rewards"][0] for reply in replies] == [score(lone, text) for text in RESPONSES]
