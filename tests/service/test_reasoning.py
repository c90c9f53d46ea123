"""Test that every door drops reasoning, by the option of a request or the setting of the service."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.settings import Settings
from tests.service.conftest import PAIR, Served, serve
from tests.service.test_dialects_alone import ALL, PROBABILITIES, REWARDS, post
from tests.service.test_dialects_trainers import CHATML, PROMPT, openrlhf
from tests.support.waiting import wait_until

THOUGHT = "<think>\nThe sum is even.\n</think>\n\n"
RESPONSE, OTHER = "2 + 2 = 4.", "I cannot help with that."
# The routes of the service itself, with one response or two, and where scores stand.
NATIVE = {
    "/v1/score": lambda text: {"prompt": PROMPT, "response": text},
    "/v1/compare": lambda text: {"prompt": PROMPT, "response_a": text, "response_b": OTHER},
    "/v1/rank": lambda text: {"prompt": PROMPT, "responses": [text, OTHER]},
    "/v1/rewards": lambda text: {"prompt": PROMPT, "responses": [text, OTHER]},
}


@pytest.fixture(scope="module")
def keeping(response_bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=response_bundle_folder, dialects=ALL)) as one:
        yield one


@pytest.fixture(scope="module")
def dropping(response_bundle_folder: Path) -> Iterator[Served]:
    with serve(Settings(model=response_bundle_folder, dialects=ALL, reasoning="drop")) as one:
        yield one


@pytest.mark.parametrize("path", NATIVE)
def test_the_service_itself_drops_reasoning(keeping: Served, dropping: Served, path: str) -> None:
    plain, thought = NATIVE[path](RESPONSE), NATIVE[path](THOUGHT + RESPONSE)
    expected = post(keeping, path, plain)
    assert post(keeping, path, thought) != expected
    assert post(keeping, path, thought | {"reasoning": "drop"}) == expected
    assert post(dropping, path, thought) == expected
    assert post(dropping, path, thought | {"reasoning": "keep"}) == post(keeping, path, thought)


def test_each_item_of_a_batch_has_its_own_option(keeping: Served) -> None:
    plain, thought = NATIVE["/v1/compare"](RESPONSE), NATIVE["/v1/compare"](THOUGHT + RESPONSE)
    kept, dropped = post(keeping, "/v1/compare/batch", {"items": [thought, thought | {"reasoning": "drop"}]})["results"]
    assert dropped == post(keeping, "/v1/compare", plain) != kept


@pytest.mark.parametrize("dialect", [*REWARDS, *(name for name in PROBABILITIES if name not in REWARDS)])
def test_every_dialect_drops_reasoning(keeping: Served, dropping: Served, dialect: str) -> None:
    path, body, _ = (REWARDS | PROBABILITIES)[dialect]
    plain, thought = body(RESPONSE), body(THOUGHT + RESPONSE)

    def read(served: Served, path: str, sent: Any) -> Any:
        return (REWARDS | PROBABILITIES)[dialect][2](post(served, path, sent))

    expected = read(keeping, path, plain)
    assert read(keeping, path, thought) != expected
    assert read(keeping, f"{path}?reasoning=drop", thought) == expected
    assert read(dropping, path, thought) == expected


def test_a_prompt_that_begins_the_reasoning_is_judged_without_it(keeping: Served) -> None:
    """The template of DeepSeek R1 and of Qwen3 that thinks: the response has only the end of the reasoning."""
    sent = openrlhf(f"The sum is even.\n</think>\n\n{RESPONSE}", prompt=CHATML + "<think>\n")
    dropped = post(keeping, "/get_reward?reasoning=drop", sent)
    assert dropped == post(keeping, "/get_reward", openrlhf(RESPONSE))


def test_turns_of_the_prompt_are_judged_without_reasoning(keeping: Served) -> None:
    def sent(content: str) -> dict[str, Any]:
        turns = ["Hi", content, "What is 2 + 2?"]
        roles = ["user", "assistant", "user"]
        prompt = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
        return {"prompt": prompt, "response": RESPONSE}

    expected = post(keeping, "/v1/score", sent("Hello"))
    assert post(keeping, "/v1/score", sent(THOUGHT + "Hello")) != expected
    assert post(keeping, "/v1/score", sent(THOUGHT + "Hello") | {"reasoning": "drop"}) == expected


def test_a_response_that_is_nothing_but_reasoning_is_a_blank(keeping: Served) -> None:
    sent = {"prompt": PROMPT, "response": "<think>\nThe sum", "reasoning": "drop"}
    assert post(keeping, "/v1/score", sent) == post(keeping, "/v1/score", {"prompt": PROMPT, "response": " "})


def test_a_response_that_is_nothing_but_reasoning_is_the_last_of_its_group(keeping: Served) -> None:
    body = {"prompt": PROMPT, "responses": ["<think>\n2 + 2 = 4.", OTHER, RESPONSE], "reasoning": "drop"}
    assert post(keeping, "/v1/rank", body)["order"][-1] == 0
    assert post(keeping, "/v1/rank", body | {"reasoning": "keep"})["order"][-1] != 0


HARMONY = f"<|start|>user<|message|>{PROMPT}<|end|><|start|>assistant"
ANALYSIS = "<|channel|>analysis<|message|>The sum is even.<|end|><|start|>assistant<|channel|>final<|message|>"
COMMAND = f"<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{PROMPT}<|END_OF_TURN_TOKEN|>"


@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        (HARMONY, f"{ANALYSIS}{RESPONSE}<|return|>"),
        (
            f"{COMMAND}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            "<|START_THINKING|>The sum is even.<|END_THINKING|><|START_RESPONSE|>"
            f"{RESPONSE}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        ),
        (
            f"<|im_user|>user<|im_middle|>{PROMPT}<|im_end|><|im_assistant|>assistant<|im_middle|>",
            f"<think>The sum is even.</think>{RESPONSE}<|im_end|>",
        ),
        (
            f"<|start_of_role|>user<|end_of_role|>{PROMPT}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
            f"<think>The sum is even.</think><response>{RESPONSE}</response><|end_of_text|>",
        ),
    ],
    ids=["gpt-oss", "Command A", "Kimi K2", "Granite"],
)
def test_every_trainer_gets_the_reward_of_the_response_alone(dropping: Served, prompt: str, written: str) -> None:
    body = {"prompt": [{"role": "user", "content": PROMPT}], "response": RESPONSE}
    expected = post(dropping, "/v1/score", body)["results"][0]["score"]
    assert post(dropping, "/get_reward", openrlhf(written, prompt=prompt))["rewards"] == [expected]
    assert post(dropping, "/rm", {"prompt": prompt, "response": written}) == expected
    verl = {"input": prompt + written, "use_activation": False}
    assert post(dropping, "/classify", verl)["data"][0]["probs"] == [expected]


def test_the_log_has_a_warning_once_if_nobody_has_chosen(response_bundle_folder: Path) -> None:
    body = {"prompt": PROMPT, "response": THOUGHT + RESPONSE}
    with capture_logs() as lines, serve(Settings(model=response_bundle_folder)) as served:
        for sent in (body | {"response": RESPONSE}, body | {"reasoning": "keep"}, body | {"reasoning": "drop"}):
            post(served, "/v1/score", sent)
        assert not [line for line in lines if line["event"] == "reasoning is judged"]
        post(served, "/v1/score", body)
        post(served, "/v1/score", body)
    (line,) = [line for line in lines if line["event"] == "reasoning is judged"]
    assert "TINYRM_REASONING=drop" in line["advice"]


def test_an_unknown_value_is_refused(keeping: Served) -> None:
    reply = keeping.client.post("/v1/compare", json=PAIR | {"reasoning": "hide"})
    assert reply.status_code == 422
    assert "'keep' or 'drop'" in reply.json()["error"]["message"]


def test_samples_with_other_options_are_another_cohort(bundle_folder: Path) -> None:
    settings = Settings(model=bundle_folder, dialects="openrlhf", group_size=2, cohort_timeout_s=60)
    with serve(settings) as served, ThreadPoolExecutor(4) as threads:
        texts = [RESPONSE, THOUGHT + OTHER]
        kept = [threads.submit(post, served, "/get_reward?reasoning=keep", openrlhf(texts[0]))]
        wait_until(lambda: served.metric("tinyrm_cohort_samples") == 1)
        dropped = [threads.submit(post, served, "/get_reward?reasoning=drop", openrlhf(text)) for text in texts]
        rewards = [done.result()["rewards"][0] for done in dropped]
        assert not kept[0].done()
        kept.append(threads.submit(post, served, "/get_reward?reasoning=keep", openrlhf(texts[1])))
        assert [done.result()["rewards"][0] for done in kept] != rewards
        body = {"prompt": [{"role": "user", "content": PROMPT}], "responses": [RESPONSE, OTHER]}
        assert rewards == post(served, "/v1/rewards", body)["rewards"]
