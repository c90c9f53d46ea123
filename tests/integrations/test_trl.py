"""Test the reward function, called as TRL calls it, against a live service."""

import logging
import pickle
from typing import Any

import pytest

from tests.support.processes import Process, free_port
from tinyrm.errors import CallRefused, InvalidRequest, ServiceUnreachable
from tinyrm.integrations.trl import reward_func

SUM, HELLO = "What is 48 + 24?", "Say hello."
SUMS, HELLOS = ["72, because 48 + 24 = 72.", "I like clips.", "96"], ["Hello!", "No.", "Good morning to you."]
PROMPTS, COMPLETIONS = [SUM] * 3 + [HELLO] * 3, SUMS + HELLOS
# Cannot be encoded as UTF-8, so the service refuses the text.
UNENCODABLE = "\ud800"


def call(func: Any, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    """Call it by keyword and with all other arguments of the trainer."""
    rest = {"completion_ids": [[1]] * len(prompts), "trainer_state": None, "log_extra": None, "log_metric": None}
    rewards: list[float | None] = func(prompts=prompts, completions=completions, **rest, **columns)
    return rewards


def direct(service: Process, prompt: str, responses: list[str], **options: Any) -> list[float]:
    reply = service.post("/v1/rewards", {"prompt": prompt, "responses": responses, **options})
    assert reply.status_code == 200, reply.text
    return list(reply.json()["rewards"])


def test_each_group_is_ranked_against_itself(service: Process, url: str) -> None:
    rewards = call(reward_func(url), PROMPTS, COMPLETIONS)
    assert rewards == pytest.approx(direct(service, SUM, SUMS) + direct(service, HELLO, HELLOS), abs=1e-4)
    assert len(set(rewards)) == 6


def test_options_reach_the_service(service: Process, url: str) -> None:
    rewards = call(reward_func(url, scale="unit", domain="reasoning", swap="off"), PROMPTS, COMPLETIONS)
    expected = direct(service, SUM, SUMS, scale="unit", domain="reasoning", swap="off")
    assert rewards[:3] == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(direct(service, SUM, SUMS, scale="unit"), abs=1e-4)


def test_columns_of_the_dataset_are_options_of_their_group(service: Process, url: str) -> None:
    func = reward_func(url, columns={"domain": "subject", "reference": "answer"}, strategy="reference")
    columns = {"subject": ["reasoning"] * 3 + ["chat"] * 3, "answer": ["72"] * 3 + ["Hi."] * 3, "other": [0] * 6}
    expected = [
        *direct(service, SUM, SUMS, strategy="reference", domain="reasoning", reference="72"),
        *direct(service, HELLO, HELLOS, strategy="reference", domain="chat", reference="Hi."),
    ]
    assert call(func, PROMPTS, COMPLETIONS, **columns) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="no column 'answer'"):
        call(func, PROMPTS, COMPLETIONS, subject=columns["subject"])


def test_chat_messages_get_the_rewards_of_their_texts(url: str) -> None:
    func = reward_func(url)
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    completions = [[{"role": "assistant", "content": text, "tool_calls": None}] for text in COMPLETIONS]
    assert call(func, prompts, completions) == pytest.approx(call(func, PROMPTS, COMPLETIONS), abs=1e-4)


def test_an_empty_completion_has_a_reward(url: str) -> None:
    rewards = call(reward_func(url), [SUM] * 3, [SUMS[0], "", SUMS[1]])
    assert None not in rewards


def test_groups_are_found_by_their_prompts_wherever_they_stand_and_whatever_their_size(
    service: Process, url: str
) -> None:
    """Online DPO sends all prompts, then all again; an evaluation may have another number of completions."""
    prompts = [SUM, HELLO, SUM, HELLO, SUM]
    completions = [SUMS[0], HELLOS[0], SUMS[1], HELLOS[1], SUMS[2]]
    rewards = call(reward_func(url), prompts, completions)
    assert rewards[::2] == pytest.approx(direct(service, SUM, SUMS), abs=1e-4)
    assert rewards[1::2] == pytest.approx(direct(service, HELLO, HELLOS[:2]), abs=1e-4)


def test_rows_that_differ_in_an_option_are_different_groups(service: Process, url: str) -> None:
    func = reward_func(url, columns={"domain": "subject"})
    rewards = call(func, [SUM] * 4, SUMS[:2] * 2, subject=["reasoning", "chat"] * 2)
    assert rewards[::2] == pytest.approx(direct(service, SUM, [SUMS[0], SUMS[0]], domain="reasoning"), abs=1e-4)
    mixed = call(func, [SUM] * 4, [SUMS[0], SUMS[0], SUMS[1], SUMS[1]], subject=["reasoning", "chat"] * 2)
    assert mixed[::2] == pytest.approx(direct(service, SUM, SUMS[:2], domain="reasoning"), abs=1e-4)
    assert mixed[1::2] == pytest.approx(direct(service, SUM, SUMS[:2], domain="chat"), abs=1e-4)


def test_a_completion_alone_has_no_reward_and_holds_up_no_group(url: str, caplog: pytest.LogCaptureFixture) -> None:
    metrics: dict[str, float] = {}
    with caplog.at_level(logging.WARNING):
        rewards = reward_func(url)(
            prompts=[SUM, *PROMPTS[3:]], completions=["72", *HELLOS], log_metric=metrics.__setitem__
        )
    assert rewards[0] is None
    assert None not in rewards[1:]
    assert metrics == {"tinyrm_smallest_group": 1}
    assert "no other one to its prompt" in caplog.text
    (alone,) = call(reward_func(url, strategy="reference", reference="72", scale="unit"), [SUM], ["It is 72."])
    assert alone is not None


def test_a_group_that_fails_is_skipped_alone(url: str, caplog: pytest.LogCaptureFixture) -> None:
    broken = [UNENCODABLE, *COMPLETIONS[1:]]
    with caplog.at_level(logging.WARNING):
        rewards = call(reward_func(url), PROMPTS, broken)
    assert rewards[:3] == [None] * 3
    assert None not in rewards[3:]
    assert "3 completions have no reward: invalid_text" in caplog.text
    with pytest.raises(CallRefused):
        call(reward_func(url, on_failure="raise"), PROMPTS, broken)


TOOL: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": SUM}]},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
    {"role": "tool", "content": "72", "tool_call_id": "1"},
]
IMAGE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": SUM}]}]


def test_prompts_with_tools_get_the_rewards_of_the_service(service: Process, url: str) -> None:
    completions = [[{"role": "assistant", "content": text}] for text in SUMS]
    expected = service.post("/v1/rewards", {"prompt": TOOL, "responses": completions}).json()["rewards"]
    assert call(reward_func(url), [TOOL] * 3, completions) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "completion", "reason"),
    [
        ("And 3 + 4?", None, "a response is null"),
        ("And 3 + 4?", [{"speaker": "x"}], "this one has the keys speaker"),
        (None, "x", "a prompt is null"),
        (IMAGE, "x", "a part of a message of type 'image'"),
    ],
)
def test_a_group_that_cannot_be_read_is_skipped_alone(
    url: str, prompt: Any, completion: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, completions = [*PROMPTS[:3], *[prompt] * 3], [*SUMS, completion, "x", "y"]
    with caplog.at_level(logging.WARNING):
        rewards = call(reward_func(url), prompts, completions)
    assert rewards[3:] == [None] * 3
    assert None not in rewards[:3]
    assert reason in caplog.text
    with pytest.raises(InvalidRequest, match=reason):
        call(reward_func(url, on_failure="raise"), prompts, completions)


def test_a_missing_reference_skips_its_group_alone(url: str) -> None:
    func = reward_func(url, columns={"reference": "answer"}, strategy="reference")
    rewards = call(func, PROMPTS, COMPLETIONS, answer=["72"] * 3 + [None] * 3)
    assert rewards[3:] == [None] * 3
    assert None not in rewards[:3]


def test_without_a_service_there_is_no_reward_or_an_error() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert call(reward_func(nowhere, timeout_s=1), PROMPTS, COMPLETIONS) == [None] * 6
    with pytest.raises(ServiceUnreachable):
        call(reward_func(nowhere, timeout_s=1, on_failure="raise"), PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("wrong", [{"domain": "cookery"}, {"stratagy": "swiss"}, {"model": "another"}])
def test_a_wrong_option_is_never_skipped(wrong: dict[str, str], url: str) -> None:
    with pytest.raises(CallRefused, match=r"cookery|stratagy|another"):
        call(reward_func(url, **wrong), PROMPTS, COMPLETIONS)


def test_the_reward_function_has_a_name_and_can_be_pickled(url: str) -> None:
    func = pickle.loads(pickle.dumps(reward_func(url, columns={"domain": "subject"})))
    assert func.__name__ == "tinyrm_reward"
    assert None not in call(func, PROMPTS, COMPLETIONS, subject=["chat"] * 6)
