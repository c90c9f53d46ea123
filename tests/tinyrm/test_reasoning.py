"""Test that reasoning before a response is dropped, and nothing else."""

import time
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrm.chat import BLANK, Message
from tinyrm.markup import REASONING_TAGS
from tinyrm.reasoning import HARMONY, HARMONY_BEGINNINGS, PHRASES, drop_from_prompt, drop_reasoning, judged

THOUGHT, RESPONSE = "They ask for a sum.\n\nIs it 5? No: 4.", "2 + 2 = 4.\n\n**Four.**"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALL = '<|start|>assistant<|channel|>commentary to=functions.sum <|constrain|>json<|message|>{"a": 2, "b": 2}<|call|>'
RESULT = "<|start|>functions.sum to=assistant<|channel|>commentary<|message|>4<|end|>"
ANALYSIS = f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"


@pytest.mark.parametrize(("start", "end"), REASONING_TAGS)
def test_reasoning_at_the_beginning_is_dropped(start: str, end: str) -> None:
    assert drop_reasoning(f"{start}\n{THOUGHT}\n{end}\n\n{RESPONSE}") == RESPONSE
    assert drop_reasoning(f"\n{start}{THOUGHT}{end}{RESPONSE}") == RESPONSE
    assert drop_reasoning(f"{start}\n\n{end}\n\n{RESPONSE}") == RESPONSE
    assert drop_reasoning(f"{start}{THOUGHT}{end}") == ""


@pytest.mark.parametrize(("start", "end"), REASONING_TAGS)
def test_reasoning_whose_beginning_the_template_wrote_is_dropped(start: str, end: str) -> None:
    assert drop_reasoning(f'{THOUGHT} "4"{end}"Four."') == '"Four."'
    assert drop_reasoning(f"{end}\n\n{RESPONSE}") == RESPONSE


@pytest.mark.parametrize(("start", "end"), REASONING_TAGS)
def test_reasoning_without_an_end_leaves_nothing(start: str, end: str) -> None:
    assert drop_reasoning(f"{start}\n{THOUGHT}") == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        RESPONSE,
        "  Spaces and\n\n",
        "The policy writes <think> first.\n\n<think>\nIs it 4?\n</think>\n\n4",
        "Both `<think>` and `</think>` are tags.",
        "Split at '</think>' to find it.",
        "```python\nre.sub(r'.*</think>', '', text, flags=re.DOTALL)\n```\nThis drops it.",
        "<thinker> is no tag.</thinker>",
        "analysis of the sum: 4",
        "An assistantfinal form.",
        "Here is my response: 4",
    ],
)
def test_a_response_that_speaks_of_reasoning_is_left_as_it_is(text: str) -> None:
    assert drop_reasoning(text) == text


# Hypothesis tries the strings of the code that is tested, too.
MARKS = {*HARMONY_BEGINNINGS, *chain(HARMONY, *PHRASES, *REASONING_TAGS)}


@given(st.text().filter(lambda text: not any(mark in text for mark in MARKS)))
def test_a_text_without_a_tag_is_left_as_it_is(text: str) -> None:
    assert drop_reasoning(text) == text


def test_reasoning_after_the_result_of_a_tool_is_dropped() -> None:
    call, result = '<tool_call>{"name": "sum"}</tool_call>', "<tool_response>4</tool_response>"
    raw = f"<|im_end|>\n<|im_start|>user\n{result}<|im_end|>\n<|im_start|>assistant\n"
    for between in (f"\n\n{result}\n\n", raw, "<|im_middle|>"):
        text = f"<think>{THOUGHT}</think>{call}{between}<think>Done.</think>{RESPONSE}"
        assert drop_reasoning(text) == call + between + RESPONSE
    assert drop_reasoning(f"{THOUGHT}</think>{call}\n<think>Done.</think>{RESPONSE}") == f"{call}\n{RESPONSE}"


def test_tags_inside_the_response_stay() -> None:
    code = "```\n<think>\nno\n</think>\n```\nand a <think> in a line</think>"
    assert drop_reasoning(f"<think>{THOUGHT}</think>{code}") == code


@pytest.mark.parametrize(
    "text",
    [
        ANALYSIS + FINAL + RESPONSE + "<|return|>",
        "<|start|>assistant" + ANALYSIS + FINAL + RESPONSE,
        f"{THOUGHT}<|end|>{FINAL}{RESPONSE}<|return|>",  # the template wrote the channel
        f"to=self<|message|>{THOUGHT}<|eom|><|start|>assistant to=user<|message|>{RESPONSE}<|eot|>",  # Muse Glimmer
        f"analysis{THOUGHT}assistantfinal{RESPONSE}",  # decoded without special tokens
        f"Here is my thought process:\n{THOUGHT}\n\nHere is my response:\n{RESPONSE}",
        f"<think>{THOUGHT}</think><response>{RESPONSE}</response>",
        f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{RESPONSE}<|END_RESPONSE|>",
    ],
)
def test_forms_of_families_are_dropped(text: str) -> None:
    assert drop_reasoning(text) == RESPONSE


def test_calls_of_tools_stay() -> None:
    call = '<tool_call>{"name": "sum", "arguments": {"a": 2, "b": 2}}</tool_call>'
    again = "<|start|>assistant" + ANALYSIS
    assert drop_reasoning(ANALYSIS + CALL) == call
    assert drop_reasoning(ANALYSIS + CALL + RESULT + again + FINAL + RESPONSE) == f"{call}\n\n4\n\n{RESPONSE}"
    assert drop_reasoning(ANALYSIS) == drop_reasoning(ANALYSIS[:60]) == ""


@pytest.mark.parametrize("text", ["<|channel|>", "<|channel|>analysis", "<|start|>assistant<|channel|>analysis<|mess"])
def test_a_generation_that_ran_out_inside_its_first_header_is_empty(text: str) -> None:
    assert drop_reasoning(text) == ""


def test_turns_of_the_prompt_lose_their_reasoning() -> None:
    prompt = [
        Message(role="user", content="<think>What is this?</think>"),
        Message(role="assistant", content=f"<think>{THOUGHT}</think>A tag."),
        Message(role="assistant", content=f"<think>{THOUGHT}"),
        Message(role="user", content="Thanks."),
    ]
    assert drop_from_prompt(prompt) == [prompt[0], Message(role="assistant", content="A tag."), prompt[3]]
    assert drop_from_prompt("<think>Hi</think>") == "<think>Hi</think>"
    responses = [f"<think>{THOUGHT}</think>4", "<think>"]
    assert judged("keep", prompt, responses) == (prompt, responses)
    assert judged("drop", prompt[:1], responses) == (prompt[:1], ["4", BLANK])


# Of processor time; one of these takes a tenth of it at most.
LONG_S = 8.0


@pytest.mark.parametrize(
    "piece",
    [
        "<think>",
        "</think>",
        "'</think>'",
        "```</think>",
        "<think>a</think>\n",
        "<think>a</think>\n```\n",
        "<|start|>",
        "<|channel|>analysis<|message|>",
        "<|start|>assistant<|channel|>final<|message|>",
        "'<|start|>assistant<|channel|>final<|message|>'",
        "a" * 1000,
    ],
    ids=lambda piece: piece[:20],
)
def test_a_long_text_is_read_in_linear_time(piece: str) -> None:
    """Steps that grow with the square of the length take longer than is allowed here."""
    text, began = piece * (2_000_000 // len(piece)), time.process_time()
    for beginning in ("", "x", "<think>", "<|channel|>analysis<|message|>"):
        drop_reasoning(beginning + text)
    assert time.process_time() - began < LONG_S
