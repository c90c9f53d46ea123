"""Test the reward function for ms-swift, called as ms-swift calls it, against a live service."""

import logging
from argparse import Namespace
from typing import Any

import pytest

from tests.support.processes import Process, free_port
from tinyrm.errors import ServiceUnreachable
from tinyrm.integrations.ms_swift import orm

PROMPT = "What is 48 + 24?"
RESPONSES = ["72, because 48 + 24 = 72.", "I like clips.", "96"]


def dialogue(*contents: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[row % 2], "content": content} for row, content in enumerate(contents)]


def direct(service: Process, responses: list[str], **options: Any) -> list[float]:
    reply = service.post("/v1/rewards", {"prompt": PROMPT, "responses": responses, **options})
    assert reply.status_code == 200, reply.text
    return list(reply.json()["rewards"])


def test_groups_are_those_of_the_trainer(service: Process, url: str) -> None:
    """Samples of a prompt are one group wherever they stand; another prompt alone has no reward."""
    messages = [dialogue(PROMPT, response) for response in RESPONSES]
    messages.insert(1, dialogue("Say hello.", "Hello!"))
    reward = orm(url, domain="reasoning")(args=None)
    rewards = reward([turns[-1]["content"] for turns in messages], messages=messages, prompt_id=[*"abaa"], solution=[0])
    assert rewards.pop(1) is None
    assert rewards == pytest.approx(direct(service, RESPONSES, domain="reasoning"), abs=1e-4)


def test_turns_of_the_policy_belong_to_the_response(service: Process, url: str) -> None:
    """The second turns differ, so that the dialogues before the last turns are not equal."""
    messages = [dialogue(PROMPT, response, "Are you sure?", "Yes.") for response in RESPONSES]
    rewards = orm(url)()([], messages=messages, prompt_id=["a"] * 3)
    expected = direct(service, [f"{response}\n\nAre you sure?\n\nYes." for response in RESPONSES])
    assert rewards == pytest.approx(expected, abs=1e-4)


def test_a_group_in_pieces_is_reported(url: str, caplog: pytest.LogCaptureFixture) -> None:
    reward = orm(url)(args=Namespace(num_generations=3, num_generations_eval=2))
    messages = [dialogue(PROMPT, response) for response in [*RESPONSES, "4"]]
    with caplog.at_level(logging.WARNING):
        reward([], messages=messages[:3], prompt_id=["a"] * 3)
        reward([], messages=messages[:2], prompt_id=["a"] * 2)
        assert not caplog.records
        reward([], messages=messages[:1], prompt_id=["a"])
    assert "a group has 1 completions, num_generations is 3" in caplog.text


def test_a_failure_ends_the_training() -> None:
    """A missing reward would count as 0."""
    messages = [dialogue(PROMPT, response) for response in RESPONSES]
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnreachable):
        orm(address, timeout_s=0.1)()([], messages=messages)
    assert orm(address, timeout_s=0.1, on_failure="skip")()([], messages=messages) == [None] * 3


def test_a_column_of_the_dataset_is_an_option(service: Process, url: str) -> None:
    messages = [dialogue(PROMPT, response) for response in RESPONSES]
    reward = orm(url, columns={"domain": "subject"})()
    rewards = reward([], messages=messages, subject=["reasoning"] * 3, prompts=["of the dataset"] * 3)
    assert rewards == pytest.approx(direct(service, RESPONSES, domain="reasoning"), abs=1e-4)
