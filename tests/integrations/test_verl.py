"""Test both functions, called as verl calls them, against a live service."""

import pytest

from tests.support.processes import Process
from tinyrm.integrations.verl import compute_score, compute_score_batch

SUM, HELLO = "What is 48 + 24?", "Say hello."
INFO = {"question": SUM, "index": 0, "num_turns": 2}
REFERENCE = "48 + 24 = 72."


def test_one_sample_is_compared_with_the_reference(service: Process, url: str) -> None:
    body = {"prompt": SUM, "response_a": "I like clips.", "response_b": REFERENCE, "domain": "reasoning"}
    expected = service.post("/v1/compare", body).json()["probability_a"]
    score = compute_score(
        data_source="gsm8k",
        solution_str="I like clips.",
        ground_truth=REFERENCE,
        extra_info=INFO,
        reward_router_address=None,
        reward_model_tokenizer=None,
        base_url=url,
        domains={"gsm8k": "reasoning"},
    )
    assert score == pytest.approx(expected, abs=1e-5)
    assert score != pytest.approx(compute_score("gsm8k", "I like clips.", REFERENCE, INFO, base_url=url), abs=1e-5)


def test_a_batch_is_ranked_by_group_in_any_order(service: Process, url: str) -> None:
    questions = [SUM, HELLO, SUM, HELLO]
    responses = ["I like clips.", "Hello!", "It is 72.", "No."]
    infos = [{"question": question} for question in questions]
    scores = compute_score_batch(
        data_sources=["x"] * 4, solution_strs=responses, ground_truths=[None] * 4, extra_infos=infos, base_url=url
    )
    for question, rows in ((SUM, [0, 2]), (HELLO, [1, 3])):
        body = {"prompt": question, "responses": [responses[row] for row in rows]}
        expected = service.post("/v1/rewards", body).json()["rewards"]
        assert [scores[row] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert len(set(scores)) == 4


def test_a_batch_with_references_gets_the_scores_of_single_samples(url: str) -> None:
    responses = ["I like clips.", "It is 72."]
    scores = compute_score_batch(["x"] * 2, responses, [REFERENCE] * 2, [INFO] * 2, base_url=url, strategy="reference")
    alone = [compute_score("x", response, REFERENCE, INFO, base_url=url) for response in responses]
    assert scores == pytest.approx(alone, abs=1e-4)


def test_prompts_with_tools_are_read_as_the_service_reads_them(service: Process, url: str) -> None:
    prompt = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": SUM}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
        {"role": "tool", "content": "72", "tool_call_id": "1"},
    ]
    body = {"prompt": prompt, "response_a": "It is 72.", "response_b": REFERENCE}
    expected = service.post("/v1/compare", body).json()["probability_a"]
    assert compute_score("x", "It is 72.", REFERENCE, {"question": prompt}, base_url=url) == pytest.approx(expected)
    ranked = service.post("/v1/rewards", {"prompt": prompt, "responses": ["It is 72.", "No."]}).json()["rewards"]
    infos = [{"question": prompt}] * 2
    batch = compute_score_batch(["x"] * 2, ["It is 72.", "No."], [None] * 2, infos, base_url=url)
    assert batch == pytest.approx(ranked, abs=1e-4)


def test_a_missing_field_is_named(url: str) -> None:
    with pytest.raises(ValueError, match="no 'question', only \\['index'\\]"):
        compute_score("x", "a", "b", {"index": 1}, base_url=url)
    assert 0 < compute_score("x", "a", "b", {"text": "?"}, base_url=url, prompt_key="text") < 1
    with pytest.raises(TypeError, match="ground_truth is dict"):
        compute_score("x", "a", {"answer": "b"}, INFO, base_url=url)  # type: ignore[arg-type]
