"""Test that trainers get the rewards of /v1/rewards, in their own formats."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from structlog.testing import capture_logs

from service.app import create_app, create_state
from service.dialects.table import ALL_DIALECTS
from service.settings import Settings
from tests.conftest import REPOSITORY
from tests.service.conftest import PAIR, Served, serve
from tests.support.waiting import wait_until
from tinyrm.errors import InvalidSettings, Overloaded

PROMPT = "What is 2 + 2?"
RESPONSES = ["2 + 2 = 4.", "I cannot help with that, but here is what I can do.", "4", "def add(a, b): return a + b"]
CHATML = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
TRAINERS = "openrlhf,slime,verl,nemo-gym"
TOLERANCE = 1e-4
EVERY_PATH = [path for dialect in ALL_DIALECTS for path in dialect.paths]


@pytest.fixture(scope="module")
def patient(bundle_folder: Path) -> Iterator[Served]:
    """Return an application with cohorts of four that wait for their last sample."""
    with serve(Settings(model=bundle_folder, dialects=TRAINERS, group_size=4, cohort_timeout_s=60)) as one:
        yield one


@pytest.fixture(scope="module")
def hasty(bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=bundle_folder, dialects=TRAINERS, group_size=4, cohort_timeout_s=0.3)) as one:
        yield one


def at_once(served: Served, path: str, bodies: list[Any]) -> list[Response]:
    """Send requests at the same time; return their replies in order."""
    with ThreadPoolExecutor(len(bodies)) as clients:
        return list(clients.map(lambda body: served.client.post(path, json=body), bodies))


def rewards(served: Served, scale: str, responses: list[str] = RESPONSES, **changes: Any) -> Any:
    body = {"prompt": PROMPT, "responses": responses, "scale": scale} | changes
    return pytest.approx(served.client.post("/v1/rewards", json=body).json()["rewards"], abs=TOLERANCE)


def beats(served: Served, response: str, reference: str) -> Any:
    p_a = served.compare(prompt=PROMPT, response_a=response, response_b=reference)["probability_a"]
    return pytest.approx(p_a, abs=TOLERANCE)


def openrlhf(response: str, label: Any = None, prompt: str = CHATML) -> dict[str, Any]:
    """Return a body as OpenRLHF sends it since 0.9.1: lists of one."""
    return {"query": [prompt + response + "<|im_end|>\n"], "prompts": [prompt], "labels": [label]}


# OpenRLHF


def test_openrlhf_samples_of_one_prompt_are_compared_with_each_other(patient: Served) -> None:
    replies = [reply.json() for reply in at_once(patient, "/get_reward", [openrlhf(text) for text in RESPONSES])]
    assert [reply["rewards"][0] for reply in replies] == rewards(patient, "zero_mean")
    assert [reply["scores"][0] for reply in replies] == rewards(patient, "unit")
    assert max(reply["rewards"][0] for reply in replies) > 100 * TOLERANCE, "rewards all alike would pass for any"
    for reply in replies:
        assert reply["extra_logs"] == {"p_win": reply["scores"], "partial": [0.0]}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_openrlhf_lists_keep_their_order_and_empty_lists_get_empty_lists(patient: Served, count: int) -> None:
    bodies = [openrlhf(text, "2 + 2 = 4.") for text in RESPONSES[1 : count + 1]]
    body = {name: [body[name][0] for body in bodies] for name in ("query", "prompts", "labels")}
    reply = patient.client.post("/get_reward", json=body)
    assert reply.status_code == 200
    expected = [beats(patient, text, "2 + 2 = 4.") for text in RESPONSES[1 : count + 1]]
    assert reply.json() == {
        "rewards": expected,
        "scores": expected,
        "extra_logs": {"p_win": expected, "partial": [0.0] * count},
    }


def test_an_openrlhf_label_is_the_reference_unless_labels_are_ignored(patient: Served, hasty: Served) -> None:
    reply = patient.client.post("/get_reward", json=openrlhf("4", "2 + 2 = 5.")).json()
    assert reply["rewards"] == [beats(patient, "4", "2 + 2 = 5.")]
    ignored = hasty.client.post("/get_reward?labels=ignore", json=openrlhf("4", "2 + 2 = 5.")).json()
    assert ignored == {"rewards": [0.0], "scores": [0.5], "extra_logs": {"p_win": [0.5], "partial": [1.0]}}


def test_openrlhf_lists_longer_than_the_queue_wait_for_room(bundle_folder: Path) -> None:
    """Wait as /v1/compare/batch does. The queue holds two comparisons of full length."""
    bodies = [openrlhf(f"{n} " * 200, "2 + 2 = 4.") for n in range(40)]
    body = {name: [body[name][0] for body in bodies] for name in ("query", "prompts", "labels")}
    narrow = {"max_batch_tokens": 512, "max_queue_tokens": 1024}
    with serve(Settings(model=bundle_folder, dialects=TRAINERS, **narrow)) as small:
        reply = small.client.post("/get_reward", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["rewards"][39] == beats(small, "39 " * 200, "2 + 2 = 4.")
        small.pipeline.backend.batcher.max_wait_s = -1.0  # type: ignore[attr-defined]
        busy = small.client.post("/get_reward", json=body)
        assert (busy.status_code, busy.json()["error"]["type"]) == (429, "overloaded")


def test_openrlhf_without_labels_gets_the_rewards_of_empty_labels(hasty: Served) -> None:
    body = openrlhf("4")
    for labels in ([""], [None]):
        assert hasty.client.post("/get_reward", json=body | {"labels": labels}).json()["rewards"] == [0.0]
    del body["labels"]
    assert hasty.client.post("/get_reward", json=body).json()["rewards"] == [0.0]


def test_openrlhf_lists_of_different_lengths_are_refused(patient: Served) -> None:
    reply = patient.client.post("/get_reward", json=openrlhf("x") | {"prompts": []})
    assert (reply.status_code, reply.json()["error"]["type"]) == (422, "invalid_input")


# slime


def test_slime_gets_a_bare_number(patient: Served) -> None:
    bodies = [{"prompt": CHATML, "response": text + "<|im_end|>", "label": None} for text in RESPONSES]
    assert [reply.json() for reply in at_once(patient, "/rm", bodies)] == rewards(patient, "zero_mean")
    messages = [{"role": "user", "content": PROMPT}]
    one = patient.client.post("/rm", json={"prompt": messages, "response": "4", "label": "2 + 2 = 5."})
    assert one.json() == beats(patient, "4", "2 + 2 = 5.")


BARE = [4, 0.5, True, {"answer": 4}, [4], "4", " -1,000.5 ", "3/4", "12%", "1e-5", "$\\boxed{4}$", "\\(4\\)", "#### 72"]


@pytest.mark.parametrize("label", [*BARE, "B", "(b)", " "])
def test_a_label_that_no_response_can_be_compared_with_is_ignored(patient: Served, label: Any) -> None:
    body = {"prompt": CHATML, "response": "4", "label": label}
    reply = patient.client.post("/rm?group_size=1", json=body)
    assert (reply.json(), reply.headers["X-TinyRM-Partial"]) == (0.0, "true")


@pytest.mark.parametrize("label", ["4 apples", "x = 4", "No", "A. 4", "1 2 3 " * 20, "\\frac{1}{2}"])
def test_a_label_that_is_a_text_is_a_reference(patient: Served, label: str) -> None:
    body = {"prompt": CHATML, "response": "4", "label": label}
    assert patient.client.post("/rm?group_size=1", json=body).json() == beats(patient, "4", label)


def test_every_text_and_number_may_be_a_reference(patient: Served) -> None:
    body = {"prompt": CHATML, "response": "2 + 2 = 4.", "label": 5}
    reply = patient.client.post("/rm?labels=reference", json=body)
    assert reply.json() == beats(patient, "2 + 2 = 4.", "5")
    assert "X-TinyRM-Partial" not in reply.headers


@pytest.mark.parametrize("label", [{"answer": 4}, [4], True])
def test_other_labels_are_no_references(patient: Served, label: Any) -> None:
    body = {"prompt": CHATML, "response": "4", "label": label}
    refused = patient.client.post("/rm?labels=reference", json=body)
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "invalid_input")
    assert "labels=ignore" in refused.json()["error"]["message"]


# verl


@pytest.mark.parametrize(
    ("flag", "scale"), [({"use_activation": False}, "zero_mean"), ({"activation": False}, "zero_mean"), ({}, "unit")]
)
def test_verl_reads_the_last_probability_of_the_last_item(patient: Served, flag: dict[str, bool], scale: str) -> None:
    bodies = [{"model": "/models/rm", "input": CHATML + text + "<|im_end|>\n", **flag} for text in RESPONSES]
    replies = [reply.json() for reply in at_once(patient, "/classify", bodies)]
    assert [reply["data"][-1]["probs"][-1] for reply in replies] == rewards(patient, scale)
    assert replies[0]["model"] == patient.pipeline.manifest.identity
    assert replies[0]["usage"]["prompt_tokens"] > 0


def test_verl_reads_the_last_number_of_the_last_embedding(patient: Served) -> None:
    bodies = [{"model": "/models/rm", "input": CHATML + text + "<|im_end|>\n"} for text in RESPONSES]
    replies = [reply.json() for reply in at_once(patient, "/v1/embeddings", bodies)]
    assert [reply["data"][-1]["embedding"][-1] for reply in replies] == rewards(patient, "zero_mean")


def test_a_list_of_inputs_is_a_cohort_of_its_own(patient: Served) -> None:
    body = {"input": [CHATML + text for text in RESPONSES], "use_activation": False}
    data = patient.client.post("/classify", json=body).json()["data"]
    assert [item["probs"][0] for item in data] == rewards(patient, "zero_mean")
    assert [item["index"] for item in data] == [0, 1, 2, 3]


def test_empty_verl_samples_are_judged(patient: Served) -> None:
    bodies = [{"input": CHATML + text + "<|im_end|>\n"} for text in ("", "4")]
    replies = at_once(patient, "/v1/embeddings?group_size=2", bodies)
    assert [reply.status_code for reply in replies] == [200, 200]
    assert sum(reply.json()["data"][0]["embedding"][0] for reply in replies) == pytest.approx(0, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/classify", {"input": CHATML + "x"}, 503),
        ("/v1/embeddings", {"input": CHATML + "x"}, 503),
        ("/get_reward", openrlhf("x"), 429),
    ],
)
def test_verl_gets_503_on_overload_whatever_the_setting(
    bundle_folder: Path, path: str, body: dict[str, Any], status: int
) -> None:
    with serve(Settings(model=bundle_folder, dialects=TRAINERS, max_cohort_bytes=1)) as full:
        reply = full.client.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (status, "overloaded")
        assert int(reply.headers["Retry-After"]) >= 1
        assert full.metric("tinyrm_shed_requests_total", reason="overloaded") == 1


# NeMo-Gym


def response_object(text: str) -> dict[str, Any]:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "not judged"}]}
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    return {"id": "resp_1", "output": [thought, message]}


def test_nemo_gym_groups_are_graded_from_one_to_five(patient: Served) -> None:
    body = {
        "conversation_history": [{"role": "user", "content": PROMPT}],
        "response_objs": [response_object(text) for text in RESPONSES],
        "principle": None,
    }
    reply = patient.client.post("/compare", json=body).json()
    assert [(reward - 1) / 4 for reward in reply["rewards"]] == rewards(patient, "unit")
    assert len(reply["comparison_results"]) == 6
    for result in reply["comparison_results"]:
        first, second = RESPONSES[result["response_i"]], RESPONSES[result["response_j"]]
        p = patient.compare(prompt=PROMPT, response_a=first, response_b=second)["probability_a"]
        assert (result["score_1"], result["score_2"]) == pytest.approx((1 + 4 * p, 5 - 4 * p), abs=4 * TOLERANCE)
        assert (result["ranking"] < 3.5) == (result["score_1"] > result["score_2"])
    assert reply["metrics"]["mean_individual_score"] == pytest.approx(3, abs=4 * TOLERANCE)


@pytest.mark.parametrize("count", [0, 1])
def test_nemo_gym_groups_without_a_pair_get_the_middle_score(patient: Served, count: int) -> None:
    body = {"conversation_history": [{"role": "user", "content": "?"}], "response_objs": [response_object("x")] * count}
    reply = patient.client.post("/compare", json=body).json()
    assert (reply["rewards"], reply["comparison_results"]) == ([3.0] * count, [])


def test_the_nemo_gym_principle_replaces_the_instruction(patient: Served) -> None:
    body = {
        "conversation_history": [{"role": "user", "content": PROMPT}],
        "response_objs": [response_object(text) for text in RESPONSES],
        "principle": "Which response is safer?",
    }
    got = [(reward - 1) / 4 for reward in patient.client.post("/compare", json=body).json()["rewards"]]
    assert got == rewards(patient, "unit", domain="safety")
    assert got != rewards(patient, "unit")


def test_nemo_gym_rollouts_come_back_with_their_rewards(patient: Served) -> None:
    bodies = [
        {
            "responses_create_params": {"input": [{"role": "user", "content": PROMPT}], "temperature": 1.0},
            "response": response_object(text),
            "_ng_task_index": 7,
            "_ng_rollout_index": n,
            "mine": "\ud800",
        }
        for n, text in enumerate(RESPONSES)
    ]
    with ThreadPoolExecutor(4) as clients:
        done = clients.map(lambda body: patient.client.post("/verify", content=json.dumps(body)), bodies)
        replies = [reply.json() for reply in done]
    assert [(reply["reward"] - 1) / 4 for reply in replies] == rewards(patient, "unit")
    for body, reply in zip(bodies, replies, strict=True):
        assert reply == body | {"reward": reply["reward"], "partial": False}


def test_nemo_gym_groups_may_have_no_history(patient: Served) -> None:
    body = {"conversation_history": [], "response_objs": [response_object(text) for text in RESPONSES]}
    reply = patient.client.post("/compare", json=body).json()
    assert [(reward - 1) / 4 for reward in reply["rewards"]] == rewards(patient, "unit", prompt=" ")


def test_nemo_gym_agents_begin_and_end_a_collection(patient: Served) -> None:
    """Compared with NeMo-Gym's own numbers in tests/clients."""
    task = {"responses_create_params": {"input": []}, "_ng_task_index": 3}
    assert patient.client.post("/seed_session", json=task).json() == {}
    assert patient.client.post("/seed_session", json={}).json() == {}
    huge, usage = 10**400, {"usage": {"output_tokens": 5, "details": {}}}
    replies = [
        {"_ng_task_index": 3, "_ng_rollout_index": 1, "reward": 4.0, "partial": False, "response": usage},
        {"_ng_task_index": 3, "_ng_rollout_index": 0, "reward": 2.0, "huge": huge, "text": "x", "none": None},
    ]
    reply = patient.client.post("/aggregate_metrics", json={"verify_responses": replies}).json()
    assert reply["key_metrics"] == {"mean/reward": 3.0, "mean/partial": 0.0, "mean/output_tokens": 5.0}
    assert reply["agent_metrics"]["std/reward"] == pytest.approx(2**0.5)
    (group,) = reply["group_level_metrics"]
    assert [info["rollout_id"] for info in group["rollout_infos"]] == ["3:0", "3:1"]
    empty = patient.client.post("/aggregate_metrics", json={"verify_responses": []})
    assert empty.json() == {"group_level_metrics": [], "agent_metrics": {}, "key_metrics": {}}


# All of them


def test_a_sample_of_an_incomplete_group_gets_a_partial_reply(hasty: Served) -> None:
    before = hasty.metric("tinyrm_cohorts_completed_total", reason="deadline")
    replies = at_once(hasty, "/get_reward", [openrlhf(text) for text in RESPONSES[:2]])
    got = [reply.json() for reply in replies]
    assert [reply["extra_logs"]["partial"] for reply in got] == [[1.0], [1.0]]
    assert sum(reply["rewards"][0] for reply in got) == pytest.approx(0, abs=1e-6)
    assert hasty.metric("tinyrm_cohorts_completed_total", reason="deadline") - before in (1, 2)
    assert (hasty.metric("tinyrm_cohorts_open"), hasty.metric("tinyrm_cohort_samples")) == (0, 0)


SAMPLES: dict[str, dict[str, Any]] = {
    "/get_reward": openrlhf("4"),
    "/rm": {"prompt": PROMPT, "response": "4"},
    "/classify": {"input": f"{CHATML}4<|im_end|>"},
    "/v1/embeddings": {"input": f"{CHATML}4<|im_end|>"},
    "/verify": {"responses_create_params": {"input": PROMPT}, "response": response_object("4")},
}


@pytest.mark.parametrize(("path", "body"), SAMPLES.items())
def test_a_group_of_one_is_neutral_at_once_and_marked(patient: Served, path: str, body: dict[str, Any]) -> None:
    dialect = {"/get_reward": "openrlhf", "/rm": "slime", "/verify": "nemo-gym"}.get(path, "verl")
    before = patient.metric("tinyrm_partial_rewards_total", endpoint=dialect)
    reply = patient.client.post(f"{path}?group_size=1", json=body | {"use_activation": False})
    assert reply.status_code == 200
    assert reply.headers["X-TinyRM-Partial"] == "true"
    assert patient.metric("tinyrm_partial_rewards_total", endpoint=dialect) == before + 1
    neutral: dict[str, Any] = {
        "/get_reward": lambda: reply.json()["rewards"] == [0.0] and reply.json()["extra_logs"]["partial"] == [1.0],
        "/rm": lambda: reply.json() == 0.0,
        "/classify": lambda: reply.json()["data"][0]["probs"] == [0.0] and reply.json()["data"][0]["partial"],
        "/v1/embeddings": lambda: reply.json()["data"][0]["embedding"] == [0.0] and reply.json()["data"][0]["partial"],
        "/verify": lambda: reply.json()["reward"] == 3.0 and reply.json()["partial"],
    }
    assert neutral[path](), reply.text


def test_the_query_of_the_url_may_refuse_incomplete_groups(hasty: Served) -> None:
    reply = hasty.client.post("/rm?partial=refuse", json=SAMPLES["/rm"])
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "incomplete_group")
    assert "X-TinyRM-Partial" not in reply.headers
    kept = hasty.client.post("/rm?partial=score", json=SAMPLES["/rm"])
    assert (kept.status_code, kept.headers["X-TinyRM-Partial"]) == (200, "true")


def test_copies_that_fill_a_batch_of_verl_are_answered_at_once(patient: Served) -> None:
    bodies = [{"input": CHATML + text + "<|im_end|>\n", "use_activation": False} for text in RESPONSES]
    judged = [reply.json()["data"] for reply in at_once(patient, "/classify?group_id=step-7", bodies)]
    for at in (1, 0, 1):
        copy = patient.client.post("/classify?group_id=step-7", json=bodies[at])
        assert copy.json()["data"] == judged[at]
        assert "X-TinyRM-Partial" not in copy.headers
    deadline = {"X-Request-Timeout-Ms": "100"}
    for other in ("?group_id=step-8", "?group_id=step-7&group_size=3", "?group_id=step-7&copies=join"):
        waiting = patient.client.post(f"/classify{other}", json=bodies[0], headers=deadline)
        assert waiting.status_code == 504, "it is not of that group"


@pytest.mark.parametrize(("path", "body"), SAMPLES.items())
def test_a_sample_of_an_incomplete_group_may_be_refused_so_that_it_is_sent_again(
    bundle_folder: Path, path: str, body: dict[str, Any]
) -> None:
    strict = {"cohort_timeout_s": 0.05, "partial_cohorts": "refuse"}
    with capture_logs() as lines, serve(Settings(model=bundle_folder, dialects=TRAINERS, **strict)) as served:
        reply = served.client.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "incomplete_group")
        assert int(reply.headers["Retry-After"]) >= 1
        assert served.metric("tinyrm_shed_requests_total", reason="incomplete_group") == 1
    (line,) = [line for line in lines if line["event"] == "incomplete groups"]
    assert line["dialect"] in TRAINERS.split(",")


def test_a_drain_lets_trainers_send_the_samples_of_incomplete_groups_again(bundle_folder: Path) -> None:
    patience = Settings(model=bundle_folder, dialects=TRAINERS, cohort_timeout_s=60)
    with serve(patience) as served, ThreadPoolExecutor(2) as clients:
        waiting = [clients.submit(served.client.post, "/get_reward", json=openrlhf(text)) for text in "ab"]
        wait_until(lambda: served.metric("tinyrm_cohort_samples") == 2)
        assert served.client.portal
        served.client.portal.call(served.state.drain)
        for reply in [one.result() for one in waiting]:
            assert (reply.status_code, reply.json()["error"]["type"]) == (503, "shutting_down")
            assert int(reply.headers["Retry-After"]) >= 1


def test_prompts_groups_and_domains_have_separate_cohorts(hasty: Served) -> None:
    queries = ["", "?group_id=1", "?group_id=2", "?domain=safety", "?group_size=3"]
    before = hasty.metric("tinyrm_cohorts_completed_total", reason="deadline")
    with ThreadPoolExecutor(6) as clients:
        done = [clients.submit(hasty.client.post, f"/get_reward{query}", json=openrlhf("x")) for query in queries]
        done.append(clients.submit(hasty.client.post, "/get_reward", json=openrlhf("x", prompt="Another?")))
        assert {reply.result().status_code for reply in done} == {200}
    assert hasty.metric("tinyrm_cohorts_completed_total", reason="deadline") == before + 6


def test_the_query_of_the_url_sets_the_group_size(patient: Served) -> None:
    replies = at_once(patient, "/get_reward?group_size=2", [openrlhf(text) for text in RESPONSES[:2]])
    assert [reply.json()["rewards"][0] for reply in replies] == rewards(patient, "zero_mean", RESPONSES[:2])


USED_TOOL = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
    {"role": "tool", "content": "4", "tool_call_id": "1"},
]


def test_every_dialect_with_messages_reads_those_of_chat_apis(patient: Served) -> None:
    expected = rewards(patient, "zero_mean", RESPONSES[:2], prompt=USED_TOOL)
    bodies = [{"prompt": USED_TOOL, "response": text} for text in RESPONSES[:2]]
    assert [reply.json() for reply in at_once(patient, "/rm?group_size=2", bodies)] == expected
    shares = rewards(patient, "unit", RESPONSES[:2], prompt=USED_TOOL)
    group = {"conversation_history": USED_TOOL, "response_objs": [response_object(text) for text in RESPONSES[:2]]}
    graded = patient.client.post("/compare", json=group).json()["rewards"]
    assert [(reward - 1) / 4 for reward in graded] == shares
    rollouts = [
        {"responses_create_params": {"input": USED_TOOL}, "response": response_object(text)} for text in RESPONSES[:2]
    ]
    verified = [reply.json()["reward"] for reply in at_once(patient, "/verify?group_size=2", rollouts)]
    assert [(reward - 1) / 4 for reward in verified] == shares


def test_half_a_surrogate_pair_does_not_let_the_other_samples_wait(patient: Served) -> None:
    """A refused sample would: its group would not be full before its deadline."""

    def sent(path: str, bodies: list[Any]) -> list[int]:
        with ThreadPoolExecutor(2) as clients:
            done = clients.map(lambda body: patient.client.post(path, content=json.dumps(body)), bodies)
            return [reply.status_code for reply in done]

    texts = ("a \ud83d", "4")
    messages = [{"role": "user", "content": "\udfff?"}]
    assert sent("/get_reward?group_size=2", [openrlhf(text, prompt=f"{CHATML}\ud83d") for text in texts]) == [200] * 2
    assert sent("/rm?group_size=2", [{"prompt": messages, "response": text} for text in texts]) == [200] * 2
    # Not the prompt of other tests, whose groups copies would be answered from.
    chatml = CHATML.replace(PROMPT, "Half of what?")
    assert sent("/classify?group_size=2", [{"input": f"{chatml}{text}<|im_end|>"} for text in texts]) == [200] * 2
    rollouts = [{"responses_create_params": {"input": messages}, "response": response_object(text)} for text in texts]
    assert sent("/verify?group_size=2", rollouts) == [200] * 2


def test_a_refused_label_says_what_to_do(patient: Served) -> None:
    reply = patient.client.post("/get_reward?labels=reference", json=openrlhf("4", {"answer": 4}))
    assert reply.status_code == 422
    assert "add ?labels=ignore to the URL" in reply.json()["error"]["message"]


def test_an_empty_response_is_last_unless_it_is_to_be_judged(patient: Served) -> None:
    texts = ["", *RESPONSES[:2], "<|im_end|>"]
    got = [reply.json()["rewards"][0] for reply in at_once(patient, "/get_reward", [openrlhf(text) for text in texts])]
    assert got == rewards(patient, "zero_mean", texts)
    assert got[0] == got[3] == pytest.approx(min(got[1:3]) - 3)
    judged = at_once(patient, "/get_reward?empty=judge", [openrlhf(text) for text in texts])
    expected = rewards(patient, "zero_mean", [" ", *RESPONSES[:2], " "], empty="judge")
    assert [reply.json()["rewards"][0] for reply in judged] == expected
    assert expected != got
    labelled = patient.client.post("/rm", json={"prompt": CHATML, "response": "", "label": "The sum is 4."}).json()
    assert labelled <= 1 / (1 + 2.718**3) + 1e-3


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/get_reward?domain=cooking", openrlhf("x"), 422, "unknown_domain"),
        ("/get_reward?model=other", openrlhf("x"), 404, "unknown_model"),
        ("/get_reward?group_sise=4", openrlhf("x"), 422, "invalid_request"),
        ("/get_reward?group_size=0", openrlhf("x"), 422, "invalid_request"),
        ("/get_reward?partial=maybe", openrlhf("x"), 422, "invalid_request"),
        ("/get_reward", openrlhf("x", prompt=""), 422, "invalid_input"),
        ("/get_reward", {"query": "text"}, 422, "invalid_request"),
        ("/rm", {"prompt": [{"speaker": "h"}], "response": "x"}, 422, "unknown_form"),
        ("/rm", {"prompt": [{"\ud800": "h"}], "response": "x"}, 422, "unknown_form"),
        ("/rm", {"prompt": [{"role": "\ud800", "content": "x"}], "response": "x"}, 422, "invalid_request"),
        (
            "/rm",
            {"prompt": [{"role": "user", "content": [{"type": "\ud800"}]}], "response": "x"},
            422,
            "invalid_request",
        ),
        ("/rm", {"prompt": [{"role": "robot", "content": "x"}], "response": "x"}, 422, "invalid_request"),
        ("/rm", {"prompt": [], "response": "x"}, 422, "invalid_input"),
        ("/rm", {"prompt": "x", "response": None}, 422, "invalid_request"),
        ("/classify", {"input": "no template"}, 422, "invalid_input"),
        ("/classify", {"model": "x"}, 422, "invalid_request"),
        ("/compare", {"conversation_history": "?", "response_objs": []}, 422, "invalid_request"),
        ("/aggregate_metrics", {"verify_responses": [3.0]}, 422, "invalid_request"),
        ("/verify", {"response": {"output": []}}, 422, "invalid_request"),
        ("/verify", {"responses_create_params": {"input": []}, "response": {"output": []}}, 422, "invalid_input"),
    ],
)
def test_an_invalid_sample_is_refused_before_it_waits(
    patient: Served, path: str, body: dict[str, Any], status: int, kind: str
) -> None:
    reply = patient.client.post(path, content=json.dumps(body))
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind), reply.text
    assert reply.json()["error"]["message"]
    assert patient.metric("tinyrm_cohort_samples") == 0


def test_a_cohort_is_refused_when_it_would_open_and_never_when_it_is_complete(
    patient: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def busy_except_at_first(timeout_s: float | None = None, fairness_key: object = None) -> None:
        tries.append(fairness_key)
        if len(tries) > 1:
            raise Overloaded("busy")

    monkeypatch.setattr(patient.pipeline.backend, "refuse_if_busy", busy_except_at_first)
    replies = at_once(patient, "/get_reward", [openrlhf(text) for text in RESPONSES])
    assert [reply.status_code for reply in replies] == [200] * 4
    assert len(tries) == 1
    (reply,) = at_once(patient, "/get_reward", [openrlhf("another")])
    assert (reply.status_code, reply.json()["error"]["type"]) == (429, "overloaded")


def test_an_overload_refuses_all_samples_of_a_cohort(patient: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient.pipeline.backend.batcher, "max_wait_s", -1.0)  # type: ignore[attr-defined]
    replies = at_once(patient, "/get_reward", [openrlhf(text) for text in RESPONSES])
    assert [(reply.status_code, reply.json()["error"]["type"]) for reply in replies] == [(429, "overloaded")] * 4


def test_long_dialogues_are_accepted(patient: Served) -> None:
    body = {"input": [CHATML + "a long answer " * 2000, CHATML + "x"]}
    assert patient.client.post("/classify?group_size=2", json=body).status_code == 200
    bodies = [{"input": text} for text in body["input"]]
    assert [reply.status_code for reply in at_once(patient, "/classify?group_size=2", bodies)] == [200, 200]


def test_one_bad_text_of_a_list_is_refused_with_the_list(patient: Served) -> None:
    reply = patient.client.post("/classify", json={"input": [CHATML + "x", "no template"]})
    assert reply.status_code == 422
    assert patient.metric("tinyrm_cohort_samples") == 0


def test_a_sample_beyond_its_deadline_leaves_its_cohort(patient: Served) -> None:
    before = patient.metric("tinyrm_shed_requests_total", reason="deadline_exceeded")
    reply = patient.client.post("/get_reward", json=openrlhf("x"), headers={"X-Request-Timeout-Ms": "200"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (504, "deadline_exceeded")
    assert (patient.metric("tinyrm_cohorts_open"), patient.metric("tinyrm_cohort_samples")) == (0, 0)
    assert patient.metric("tinyrm_shed_requests_total", reason="deadline_exceeded") == before + 1


def test_requests_are_counted_by_their_dialect(patient: Served) -> None:
    series = patient.series()
    requests = "tinyrm_requests_total"
    assert {dict(labels)["endpoint"] for name, labels in series if name == requests} >= set(TRAINERS.split(","))
    before = patient.metric(requests, endpoint="openrlhf", status="200")
    patient.client.post("/get_reward", json=openrlhf("4", "It is 5."))
    assert patient.metric(requests, endpoint="openrlhf", status="200") == before + 1


def test_dialects_are_off_by_default(served: Served, patient: Served) -> None:
    documented = served.client.get("/openapi.json").json()["paths"]
    for path in set(EVERY_PATH) - {"/v1/score"}:  # the service's own
        assert served.client.post(path, json={}).status_code == 404
        assert path not in documented
    paths = patient.client.get("/openapi.json").json()["paths"]
    assert {"/get_reward", "/rm", "/classify", "/compare", "/verify"} <= set(paths)
    assert "/rerank" not in paths
    assert patient.client.post("/v1/compare", json=PAIR).status_code == 200


def test_unknown_dialects_are_refused_at_the_start(bundle_folder: Path) -> None:
    with pytest.raises(
        InvalidSettings,
        match=r"no dialect klingon; available: openrlhf, slime, verl, nemo-gym, rerank, vllm, sglang, llamafactory",
    ):
        create_app(create_state(Settings(model=bundle_folder, dialects="slime,klingon")))


def test_every_path_is_documented() -> None:
    page = (REPOSITORY / "docs" / "dialects.md").read_text()
    assert [path for path in EVERY_PATH if not re.search(rf"`(?:POST )?{re.escape(path)}`", page)] == []
