"""Test that chat messages of every form become messages of a role and a text, by one mapping."""

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from tinyrm import api
from tinyrm.chat import BLANK, SPEAKERS, ChatMessage, Message, read_turn, to_messages, to_prompt, to_response
from tinyrm.errors import InvalidRequest, UnknownForm

CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": "ü"}'}}
CALLED = '<tool_call>{"name": "add", "arguments": {"a": "ü"}}</tool_call>'

# A turn in each form, with what it holds.
FORMS: list[tuple[dict[str, Any], tuple[str, str]]] = [
    ({"role": "user", "content": "Hi"}, ("user", "Hi")),
    ({"role": "User", "content": "Hi"}, ("user", "Hi")),
    ({"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "input_text", "text": "i"}]}, ("user", "Hi")),
    ({"role": "user", "content": ["H", "i"]}, ("user", "Hi")),
    ({"role": "user", "content": np.array([{"type": "text", "text": "Hi"}])}, ("user", "Hi")),
    ({"role": "user", "content": "Hi", "tool_calls": None, "name": None}, ("user", "Hi")),
    ({"role": "developer", "content": "Be brief."}, ("system", "Be brief.")),
    ({"role": "tool", "tool_call_id": "1", "content": "4"}, ("tool", "4")),
    ({"role": "function", "name": "add", "content": "4"}, ("tool", "4")),
    ({"role": "assistant", "content": None}, ("assistant", "")),
    ({"role": "assistant", "content": None, "tool_calls": [CALL]}, ("assistant", CALLED)),
    ({"role": "assistant", "tool_calls": [CALL]}, ("assistant", CALLED)),
    ({"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}, ("assistant", f"Let me see.\n{CALLED}")),
    ({"role": "assistant", "content": "", "tool_calls": [{}]}, ("assistant", "")),
    ({"role": "assistant", "content": None, "function_call": CALL["function"]}, ("assistant", CALLED)),
    ({"role": "assistant", "content": None, "refusal": "No."}, ("assistant", "No.")),
    ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, ("assistant", "No.")),
    ({"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"text": "4"}]}, ("assistant", "4")),
    (
        {"role": "assistant", "content": [{"type": "tool_use", "name": "add", "input": {"a": "ü"}}]},
        ("assistant", CALLED),
    ),
    ({"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "4"}]}]}, ("user", "4")),
    ({"from": "human", "value": "Hi"}, ("user", "Hi")),
    ({"from": "gpt", "value": "Hi"}, ("assistant", "Hi")),
    ({"from": "observation", "value": "4"}, ("tool", "4")),
    ({"role": None, "from": "human", "content": None, "value": "Hi"}, ("user", "Hi")),
    ({"role": "prompter", "text": "Hi"}, ("user", "Hi")),
    ({"type": "function_call", "name": "add", "arguments": '{"a": "ü"}', "call_id": "1"}, ("assistant", CALLED)),
    ({"type": "function_call_output", "call_id": "1", "output": "4"}, ("tool", "4")),
    ({"type": "reasoning", "summary": []}, ("assistant", "")),
    ({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4"}]}, ("assistant", "4")),
]


@pytest.mark.parametrize(("turn", "expected"), FORMS, ids=[str(turn)[:60] for turn, _ in FORMS])
def test_every_form_of_a_turn_is_read(turn: dict[str, Any], expected: tuple[str, str]) -> None:
    assert read_turn(turn) == expected


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"speaker": "human", "utterance": "Hi"}, "this one has the keys speaker, utterance"),
        ({"role": "user"}, "this one has the keys role"),
        ({"content": "Hi"}, "this one has the keys content"),
        ({"content\ud800": "Hi"}, r"the keys content\\ud800"),
        ({"value": "Hi", "weight": 1}, "this one has the keys value, weight"),
        ({}, "this one has no keys"),
        ("Hi", "not str"),
        (None, "not null"),
        ({"role": "robot", "content": "Hi"}, "unknown role 'robot'"),
        ({"role": 5, "content": "Hi"}, "unknown role '5'"),
        ({"role": "user", "content": 5}, "not int"),
        ({"role": "user", "content": {"text": "Hi"}}, "not dict"),
        ({"role": "user", "content": [5]}, "not int"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "of type 'text' has no text"),
        ({"role": "user", "content": [{"words": "Hi"}]}, "with the keys words"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "this one has the keys id"),
        ({"role": "assistant", "tool_calls": [5]}, "this one has int"),
        ({"role": "assistant", "tool_calls": 5}, "this one has int"),
        ({"role": "assistant", "function_call": 5}, "this one has int"),
        ({"role": "assistant", "refusal": 5}, "the keys role, refusal"),
        ({"role": ["user"], "content": "Hi"}, "unknown role"),
        ({"role": "user", "content": "Hi", "type": ["message"], "tool_calls": {"x": 1}}, "this one has the keys x"),
    ],
)
def test_a_turn_in_another_form_is_refused_with_what_it_has(turn: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read_turn(turn)
    with pytest.raises(InvalidRequest, match=reason):
        to_prompt([turn])
    with pytest.raises(InvalidRequest, match=reason):
        to_response([turn])


def test_keys_that_are_not_known_are_of_no_known_form() -> None:
    with pytest.raises(UnknownForm):
        read_turn({"speaker": "human", "utterance": "Hi"})


def test_nested_results_of_tools_are_not_followed_for_ever() -> None:
    part: Any = "4"
    for _ in range(100):
        part = [{"type": "tool_result", "content": part}]
    with pytest.raises(InvalidRequest):
        read_turn({"role": "user", "content": part})


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_the_api_and_the_library_read_a_message_alike(role: str) -> None:
    turns = [{"role": role, "content": "one"}, {"role": "user", "content": [{"type": "text", "text": "two"}]}]
    assert TypeAdapter(api.Prompt).validate_python(turns) == to_messages(turns) == to_prompt(turns)
    assert SPEAKERS[role] in ("system", "user", "assistant", "tool")


def test_messages_that_are_read_are_read_alike_again() -> None:
    messages = to_messages([{"role": "tool", "content": "4"}, {"role": "developer", "content": "Be brief."}])
    assert messages == [Message(role="user", content="4"), Message(role="system", content="Be brief.")]
    assert to_messages(messages) == messages


def test_the_schema_of_the_api_names_what_chat_apis_send() -> None:
    assert {"role", "content", "tool_calls", "tool_call_id", "name", "refusal"} <= set(ChatMessage.__annotations__)


def test_text_stays_as_it_is() -> None:
    assert to_prompt("What is\n2 + 2? ") == "What is\n2 + 2? "
    assert to_response(" 4\n") == " 4\n"


def test_turns_keep_role_and_text_only() -> None:
    turns = [
        {"role": "system", "content": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]},
    ]
    assert to_prompt(turns) == [{"role": "user", "content": "What is 2 + 2?"}]


def test_a_completion_of_several_turns_is_all_their_text() -> None:
    turns = [
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]
    assert to_response(turns) == f"Let me see.\n{CALLED}\n\n4\n\nIt is 4."


@pytest.mark.parametrize("nothing", [None, 5, [None]])
def test_a_text_that_is_missing_is_refused(nothing: Any) -> None:
    with pytest.raises(InvalidRequest):
        to_prompt(nothing)
    with pytest.raises(InvalidRequest):
        to_response(nothing)


@pytest.mark.parametrize("nothing", ["", [], [{"role": "assistant", "content": ""}]])
def test_empty_messages_are_a_response_and_a_prompt(nothing: object) -> None:
    assert to_response(nothing) == BLANK  # type: ignore[arg-type]
    assert to_prompt(nothing) == BLANK  # type: ignore[arg-type]
