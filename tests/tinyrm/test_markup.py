"""Test that prompt and response are found in the texts of trainers."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyrm.chat import Message
from tinyrm.errors import InvalidInput
from tinyrm.markup import (
    MAX_TURNS,
    MIN_OVERLAP,
    find_response,
    parse_markup,
    parse_prompt,
    parse_turns,
    split_dialogue,
    strip_special,
)

BAR, LOW = "\uff5c", "\u2581"

CHATML = "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>\n"),
    "chatml, thrice the end": (CHATML, "<|im_end|><|im_end|><|endoftext|>"),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "llama-4": (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n{user}<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n",
        "<|eot|>",
    ),
    "gemma": ("<bos><start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>\n<eos>"),
    "phi": ("<|user|>\n{user}<|end|>\n<|assistant|>\n", "<|end|>\n<|endoftext|>"),
    "zephyr": ("<|user|>\n{user}</s>\n<|assistant|>\n", "</s>"),
    "glm": ("[gMASK]<sop><|user|>\n{user}<|assistant|>\n", ""),
    "mistral": ("<s>[INST] {user} [/INST]", " </s>"),
    "deepseek": (
        f"<{BAR}begin{LOW}of{LOW}sentence{BAR}><{BAR}User{BAR}>{{user}}<{BAR}Assistant{BAR}>",
        f"<{BAR}end{LOW}of{LOW}sentence{BAR}>",
    ),
}
QUESTION, ANSWER = "What is 2 + 2?\nExplain.", "2 + 2 = 4.\n\nTwo and two."


def of_user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


@pytest.mark.parametrize(("template", "end"), TEMPLATES.values(), ids=TEMPLATES)
def test_every_template_gives_its_prompt_and_its_last_turn(template: str, end: str) -> None:
    prompt = template.format(user=QUESTION)
    assert parse_prompt(prompt) == of_user(QUESTION)
    assert split_dialogue(prompt + ANSWER + end) == (of_user(QUESTION), ANSWER)
    assert find_response(prompt + ANSWER + end, prompt) == ANSWER


def test_a_dialogue_keeps_its_turns_and_roles() -> None:
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [(turn["role"], turn["content"]) for turn in parse_markup(text)] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "42"),
    ]


def test_the_first_text_of_a_deepseek_prompt_is_the_system_message() -> None:
    text = f"Be brief.<{BAR}User{BAR}>Hi<{BAR}Assistant{BAR}>"
    assert [turn["role"] for turn in parse_markup(text)] == ["system", "user"]


@pytest.mark.parametrize(
    "text", ["What is 2 + 2?", "What does [INST] mean?", "Explain <|user|> and <|im_start|>user\n"]
)
def test_text_without_a_template_is_a_prompt_as_it_is(text: str) -> None:
    assert parse_prompt(text) == text


@pytest.mark.parametrize(
    "text", ["", "no template", CHATML.format(user="Hi"), "<|im_start|>assistant\nalone<|im_end|>"]
)
def test_text_that_does_not_end_with_the_assistant_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"docs/dialects\.md"):
        split_dialogue(text)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "\n<|endoftext|>"])
def test_an_empty_turn_is_a_response(end: str) -> None:
    """verl sends it for an empty response, and a refusal would end the training."""
    assert split_dialogue(CHATML.format(user="Hi") + end) == (of_user("Hi"), "")


@given(prompt=st.text(), response=st.text())
def test_a_response_after_its_prompt_is_found(prompt: str, response: str) -> None:
    assert find_response(prompt + response, prompt) == strip_special(response)


@given(cut=st.integers(1, 200), response=st.text(alphabet="abc \n"))
def test_a_response_after_a_truncated_prompt_is_found(cut: int, response: str) -> None:
    prompt = "".join(f"{n}, " for n in range(100))
    assert find_response(prompt[cut:] + response, prompt) == strip_special(response)


def test_text_that_does_not_begin_with_the_prompt_is_all_response() -> None:
    assert find_response("An answer.<|im_end|>", "A question?") == "An answer."
    chance = "x" * (MIN_OVERLAP - 1)
    assert find_response(chance + " is no rest of a prompt", "A question about " + chance).startswith(chance)


def test_an_added_or_missing_start_token_does_not_hide_the_prompt() -> None:
    assert find_response("<s>A question? Yes.</s>", "A question?") == "Yes."
    assert find_response("A question? Yes.", "<s>A question?") == "Yes."


def test_special_tokens_inside_stay() -> None:
    assert strip_special("<s> a </s> b </s>\n<pad><pad>") == "a </s> b"
    assert strip_special("<results>\n<think>4</think>\n</results>") == "<results>\n<think>4</think>\n</results>"


@pytest.mark.parametrize(
    "text",
    [
        "<pad> " * 1_000_000,
        " " * 6_000_000,
        "x<" * 3_000_000,
        "<|im_start|>user\n" * 350_000,
        "[INST]" * 1_000_000,
        "<|start_header_id|>" + "a" * 6_000_000,
        "<|start_header_id|>a" * 300_000,
        "\n\nHuman:" * 700_000,
        "Human:" + "\n" * 6_000_000,
    ],
    ids=lambda t: t[:8],
)
def test_a_text_that_fills_a_body_is_parsed_in_linear_time(text: str) -> None:
    """Steps that grow with the square of the length would reach the time limit of a test."""
    strip_special("x" + text)
    parse_markup(text)
    parse_turns(text)
    find_response(text + "b", text + "c")


def test_a_prompt_that_repeats_itself_is_searched_up_to_a_limit() -> None:
    """At each position the query might begin, and most of them differ only after a million letters: without the limit
    the search reaches the time limit of a test."""
    prompt, query = "a" * 4_000_000, "a" * 2_000_000 + "b" + "a" * 2_000_000
    assert find_response(query, prompt) == query


@pytest.mark.parametrize("turn", ["\n\nHuman: x", "<|im_start|>user\nx<|im_end|>\n", "[INST]x"])
def test_a_text_of_very_many_turns_is_not_a_dialogue(turn: str) -> None:
    """A million turns would block the service for seconds."""
    assert len(parse_turns(turn * MAX_TURNS)) == MAX_TURNS
    assert parse_turns(turn * (MAX_TURNS + 1)) == []
    assert parse_prompt(turn * (MAX_TURNS + 1)) == turn * (MAX_TURNS + 1)


def test_a_text_that_only_looks_like_a_header_costs_no_time() -> None:
    """Each end of the role would be tried with each length of what may follow it."""
    text = "<|start_of_role|>" + "a" * 4_000_000
    started = time.process_time()
    assert parse_prompt(text) == text
    assert time.process_time() - started < 0.6


def test_a_transcript_is_parsed_into_its_turns() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nwith Human: inside\n\nHuman: Bye\n\nAssistant:"
    turns = [("user", "Hi"), ("assistant", "Hello\n\nwith Human: inside"), ("user", "Bye"), ("assistant", "")]
    assert parse_turns(text) == turns
    assert parse_turns(text.lstrip()) == turns
    assert parse_turns(CHATML.format(user="Hi")) == [("user", "Hi"), ("assistant", "")]


@pytest.mark.parametrize("text", ["", "Hi", "A text about\n\nHuman: and Assistant:", "Humans: we"])
def test_any_other_text_has_no_turns(text: str) -> None:
    assert parse_turns(text) == []
