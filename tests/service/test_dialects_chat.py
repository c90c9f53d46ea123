"""Prompt and response are found in what trainers send."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dialects.chat import MIN_OVERLAP, Turn, last_turn, prompt_of, response_in, stripped, turns_of
from tinyrm.chat import Message
from tinyrm.errors import InvalidInput

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
    assert prompt_of(prompt) == of_user(QUESTION)
    assert last_turn(prompt + ANSWER + end) == (of_user(QUESTION), ANSWER)
    assert response_in(prompt + ANSWER + end, prompt) == ANSWER


def test_a_dialogue_keeps_its_turns_and_its_speakers() -> None:
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [(turn["role"], turn["content"]) for turn in turns_of(text)] == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "42"),
    ]  # fmt: skip


def test_what_deepseek_says_first_is_the_systems() -> None:
    text = f"Be brief.<{BAR}User{BAR}>Hi<{BAR}Assistant{BAR}>"
    assert [turn["role"] for turn in turns_of(text)] == ["system", "user"]


@pytest.mark.parametrize(
    "text", ["What is 2 + 2?", "What does [INST] mean?", "Explain <|user|> and <|im_start|>user\n"]
)
def test_text_without_a_template_is_a_prompt_as_it_is(text: str) -> None:
    assert prompt_of(text) == text


def test_messages_may_have_parts_and_unknown_speakers() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "image_url", "image_url": "x"}, {"type": "text", "text": "two"}]
    turns = [Turn(role="developer", content="Be brief."), Turn(role="user", content=parts), Turn(role="user")]
    assert prompt_of(turns) == [Message(role="system", content="Be brief."), Message(role="user", content="one two")]


@pytest.mark.parametrize(
    "text", ["", "no template", CHATML.format(user="Hi"), "<|im_start|>assistant\nalone<|im_end|>"]
)
def test_what_has_no_last_turn_of_the_assistant_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"docs/dialects\.md"):
        last_turn(text)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "\n<|endoftext|>"])
def test_a_turn_that_says_nothing_is_a_response(end: str) -> None:
    """verl sends it when a policy has nothing to say, and a refusal would end the training."""
    assert last_turn(CHATML.format(user="Hi") + end) == (of_user("Hi"), "")


@given(prompt=st.text(), response=st.text())
def test_a_response_behind_its_prompt_is_found(prompt: str, response: str) -> None:
    assert response_in(prompt + response, prompt) == stripped(response)


@given(cut=st.integers(1, 200), response=st.text(alphabet="abc \n"))
def test_a_response_behind_the_end_of_its_prompt_is_found(cut: int, response: str) -> None:
    prompt = "".join(f"{n}, " for n in range(100))
    assert response_in(prompt[cut:] + response, prompt) == stripped(response)


def test_what_does_not_begin_with_the_prompt_is_a_response_as_a_whole() -> None:
    assert response_in("An answer.<|im_end|>", "A question?") == "An answer."
    chance = "x" * (MIN_OVERLAP - 1)
    assert response_in(chance + " is no rest of a prompt", "A question about " + chance).startswith(chance)


def test_one_beginning_more_or_less_does_not_hide_the_prompt() -> None:
    assert response_in("<s>A question? Yes.</s>", "A question?") == "Yes."
    assert response_in("A question? Yes.", "<s>A question?") == "Yes."


def test_special_tokens_inside_stay() -> None:
    assert stripped("<s> a </s> b </s>\n<pad><pad>") == "a </s> b"


@pytest.mark.parametrize(
    "text",
    ["<pad> " * 1_000_000, " " * 6_000_000, "x<" * 3_000_000, "<|im_start|>user\n" * 350_000],
    ids=lambda t: t[:8],
)
def test_texts_of_a_full_body_hold_nobody_up(text: str) -> None:
    begun = time.perf_counter()
    stripped("x" + text)
    turns_of(text)
    response_in(text + "b", text + "c")
    assert time.perf_counter() - begun < 10


def test_a_prompt_that_repeats_itself_holds_nobody_up() -> None:
    """Each of its places might be where the query begins, and most of them are wrong only after a million letters."""
    prompt, query = "a" * 4_000_000, "a" * 2_000_000 + "b" + "a" * 2_000_000
    begun = time.perf_counter()
    assert response_in(query, prompt) == query
    assert time.perf_counter() - begun < 1
