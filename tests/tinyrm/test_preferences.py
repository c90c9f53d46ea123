"""Test that rows of published preference sets are read right, or refused with the columns or keys that they have."""

import json
from typing import Any

import numpy as np
import pytest

from tinyrm.errors import InvalidRequest, Mismatch, MissingText, UnknownForm
from tinyrm.preferences import read_preference

Q, A, B = "What is 2 + 2?", "2 + 2 = 4.", "2 + 2 = 5."
ASKED = [{"role": "user", "content": Q}]
BRIEF = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]


def said(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def whole(*before: dict[str, Any]) -> dict[str, Any]:
    """Return both responses as whole conversations."""
    return {"chosen": [*before, *ASKED, said(A)], "rejected": [*before, *ASKED, said(B)]}


def shared(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in turns]


def chatml(response: str) -> str:
    return f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"


HH = f"\n\nHuman: {Q}\n\nAssistant:"
PAIR = {"chosen": A, "rejected": B}
TURNS = {"chosen": [said(A)], "rejected": [said(B)]}
USED_TOOL = [*ASKED, said(None, tool_calls=[{"function": {"name": "add", "arguments": "{}"}}])]
CALLED = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'

# Rows as sets have them -> their prompt, if it is not the question alone.
FORMS: dict[str, tuple[dict[str, Any], Any]] = {
    "texts": ({"prompt": Q, **PAIR}, Q),
    "TRL: a prompt of messages, responses of messages": ({"prompt": ASKED, **TURNS}, ASKED),
    "TRL: a prompt of text, responses of messages": ({"prompt": Q, **TURNS}, Q),
    "TRL: responses of one message each": ({"prompt": Q, "chosen": said(A), "rejected": said(B)}, Q),
    "TRL: no prompt": (whole(), ASKED),
    "TRL: the prompt of messages in both": ({"prompt": ASKED, **whole()}, ASKED),
    "Skywork": ({**whole(), "source": "magpie"}, ASKED),
    "UltraFeedback, binarized": ({"prompt": Q, "prompt_id": "1", "messages": [*ASKED, said(A)], **whole()}, ASKED),
    "the same with a system message": ({"prompt": Q, **whole(BRIEF)}, [BRIEF, *ASKED]),
    "the same with earlier turns": ({"prompt": Q, **whole(*EARLIER)}, [*EARLIER, *ASKED]),
    "the first of several questions as prompt": ({"prompt": "Hi.", **whole(*EARLIER)}, [*EARLIER, *ASKED]),
    "HH-RLHF": ({"chosen": f"{HH} {A}", "rejected": f"{HH} {B}"}, ASKED),
    "HH-RLHF, with earlier turns": (
        {name: f"\n\nHuman: Hi.\n\nAssistant: Hello.{HH} {text}" for name, text in PAIR.items()},
        [*EARLIER, *ASKED],
    ),
    "HH-RLHF, with its prompt apart": ({"prompt": HH, "chosen": f" {A}", "rejected": f" {B}"}, ASKED),
    "HH-RLHF, with its prompt apart and in both": (
        {"prompt": HH, "chosen": f"{HH} {A}", "rejected": f"{HH} {B}"},
        ASKED,
    ),
    "texts in a chat template": ({"chosen": chatml(A), "rejected": chatml(B)}, ASKED),
    "texts that repeat the prompt": ({"prompt": Q, "chosen": f"{Q} {A}", "rejected": f"{Q}\n\n{B}"}, Q),
    "the same, with a short prompt": (
        {"prompt": "Add these:", "chosen": f"Add these: {A}", "rejected": f"Add these:\n{B}"},
        "Add these:",
    ),
    "ShareGPT": (
        {"chosen": shared(("human", Q), ("gpt", A)), "rejected": shared(("human", Q), ("gpt", B))},
        ASKED,
    ),
    "LLaMA-Factory": (
        {
            "conversations": shared(("system", "Be brief."), ("human", Q)),
            "chosen": {"from": "gpt", "value": A},
            "rejected": {"from": "gpt", "value": B},
        },
        [BRIEF, *ASKED],
    ),
    "UltraInteract": ({"trajectory": shared(("user", Q)), **PAIR}, ASKED),
    "Argilla": ({"instruction": Q, "chosen_response": A, "rejected_response": B}, Q),
    "StackExchange": ({"question": Q, "response_j": A, "response_k": B}, Q),
    "Orca": ({"system": "Be brief.", "question": Q, **PAIR}, [BRIEF, *ASKED]),
    "Orca, without a system message": ({"system": "", "question": Q, **PAIR}, Q),
    "Alpaca": ({"instruction": "Add.", "input": "2 2", **PAIR}, [{"role": "user", "content": "Add.\n\n2 2"}]),
    "developer": (
        {name: [{"role": "developer", "content": "Be brief."}, *ASKED, said(text)] for name, text in PAIR.items()},
        [BRIEF, *ASKED],
    ),
    "parts": ({"prompt": [{"role": "user", "content": [{"type": "text", "text": Q}]}], **PAIR}, ASKED),
    "a list for each key": (
        {name: {"role": ["user", "assistant"], "content": [Q, text]} for name, text in PAIR.items()},
        ASKED,
    ),
    "NumPy": ({name: np.array(value) for name, value in whole().items()}, ASKED),
    "JSON in a text": ({name: json.dumps(value) for name, value in whole().items()}, ASKED),
    "a prompt of JSON in a text": ({"prompt": json.dumps(ASKED), **PAIR}, ASKED),
    "a tool in the prompt": (
        {name: [*USED_TOOL, {"role": "tool", "content": "4"}, said(text)] for name, text in PAIR.items()},
        [*ASKED, {"role": "assistant", "content": CALLED}, {"role": "user", "content": "4"}],
    ),
    "columns that do not matter": ({"id": 1, "prompt": Q, "chosen_score": 9, "domain": None, **PAIR}, Q),
}


@pytest.mark.parametrize(("row", "prompt"), FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_two_responses(row: dict[str, Any], prompt: Any) -> None:
    texts = read_preference(row)
    assert (texts.chosen.strip(), texts.rejected.strip()) == (A, B)
    assert texts.prompt == prompt


@pytest.mark.parametrize(("row", "prompt"), FORMS.values(), ids=FORMS)
def test_a_column_under_another_name_is_refused_or_not_needed(row: dict[str, Any], prompt: Any) -> None:
    """Rename each column in turn, and each key of the messages: never are other texts read."""
    for name in row:
        renamed = {(f"other_{key}" if key == name else key): value for key, value in row.items()}
        try:
            texts = read_preference(renamed)
        except InvalidRequest:
            continue
        assert (texts.chosen.strip(), texts.rejected.strip()) == (A, B)
        assert name in ("system", "input") or texts.prompt in (prompt, ASKED)
    for key in ("role", "content", "from", "value"):
        changed = json.loads(json.dumps(row, default=lambda array: array.tolist()).replace(f'"{key}":', f'"{key}_":'))
        if changed != json.loads(json.dumps(row, default=lambda array: array.tolist())):
            with pytest.raises(InvalidRequest, match=f"{key}_"):
                read_preference(changed)


def test_what_differs_after_the_prompt_is_the_response() -> None:
    tool = {"role": "tool", "content": "4"}
    texts = read_preference({"chosen": [*USED_TOOL, tool, said(A)], "rejected": [*ASKED, said(B)]})
    assert (texts.prompt, texts.chosen, texts.rejected) == (ASKED, f"{CALLED}\n\n4\n\n{A}", B)
    texts = read_preference(
        {"chosen": [*USED_TOOL, tool, said(A)], "rejected": [*USED_TOOL, {**tool, "content": "5"}, said(B)]}
    )
    assert (texts.chosen, texts.rejected) == (f"{CALLED}\n\n4\n\n{A}", f"{CALLED}\n\n5\n\n{B}")


def test_long_conversations_are_read_in_linear_time() -> None:
    """Steps that grow with the square of the length would reach the time limit of a test."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}] * 100_000
    texts = read_preference({"prompt": turns[:-1], "chosen": turns, "rejected": turns})
    assert len(texts.prompt) == len(turns) - 1
    with pytest.raises(Mismatch):
        read_preference({"prompt": [*turns[:-2], {"role": "user", "content": "z"}], "chosen": turns, "rejected": turns})


def test_two_equal_conversations_have_two_equal_responses() -> None:
    conversation = [*EARLIER, *ASKED, said(A)]
    texts = read_preference({"chosen": conversation, "rejected": conversation})
    assert (texts.prompt, texts.chosen, texts.rejected) == ([*EARLIER, *ASKED], A, A)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "Hi there", "Hi you"),
        ("Hi!", "Hi! What can I do?", "Hi! No."),
        (Q, f"{Q} {A}", B),
        (Q, f"{Q}{A}", f"{Q}{B}"),
        (Q, Q, Q),
        (Q, f"I said: {Q}", f"You said: {Q}"),
        (Q, "Human: I am.\n\nAssistant: So?", "No."),
        ("Human: Hi\n\nAssistant: Hello\n\nHuman: Bye", A, B),
        ("Human: Hi\n\nAssistant: Human: What?\n\nHuman: Why?", "Human: Why not?", "Human: Who asks?"),
        ("Write a message.", '[{"role": "user", "content": "Hi"}]', "No."),
    ],
)
def test_texts_that_only_look_like_another_form_stay(prompt: str, chosen: str, rejected: str) -> None:
    texts = read_preference({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert (texts.prompt, texts.chosen, texts.rejected) == (prompt, chosen, rejected)


REFUSED: dict[str, tuple[dict[str, Any], type[InvalidRequest], str]] = {
    "PKU": (
        {"prompt": Q, "response_0": A, "response_1": B, "safer_response_id": 0},
        UnknownForm,
        "the keys prompt, response_0, response_1, safer_response_id",
    ),
    "SHP": ({"history": Q, "human_ref_A": A, "human_ref_B": B, "labels": 1}, UnknownForm, "history, human_ref_A"),
    "arena": ({"conversation_a": [], "conversation_b": [], "winner": "model_a"}, UnknownForm, "conversation_a"),
    "our own names, without a preference": ({"prompt": Q, "response_a": A, "response_b": B}, UnknownForm, "response_a"),
    "half a pair": ({"prompt": Q, "chosen": A}, UnknownForm, "rejected is missing"),
    "empty": ({}, UnknownForm, "no keys"),
    "texts without a prompt": (PAIR, UnknownForm, "this row has the keys chosen, rejected"),
    "other keys in messages": (
        {name: [{"speaker": "h", "utterance": Q}] for name in PAIR},
        UnknownForm,
        r"chosen\.0: .*the keys speaker, utterance",
    ),
    "lists of texts": ({"prompt": Q, "chosen": [A], "rejected": [B]}, UnknownForm, "not str"),
    "a number": ({"prompt": Q, "chosen": 4, "rejected": B}, UnknownForm, "chosen must be a text or a list of messages"),
    "messages as Python writes them": ({name: str(v) for name, v in whole().items()}, UnknownForm, "not as JSON"),
    "chosen is null": ({"prompt": Q, "chosen": None, "rejected": B}, MissingText, "chosen is null"),
    "rejected is not a number": ({"prompt": Q, "chosen": A, "rejected": float("nan")}, MissingText, "rejected is null"),
    "prompt is null": ({"prompt": None, **PAIR}, MissingText, "prompt is null"),
    "no messages": ({"prompt": Q, "chosen": [], "rejected": [said(B)]}, MissingText, "chosen holds no messages"),
    "no messages in the prompt": ({"prompt": [], **PAIR}, MissingText, "prompt holds no messages"),
    "no text in the prompt": ({"prompt": [{"role": "user", "content": ""}], **PAIR}, MissingText, "prompt has no text"),
    "one turn, no prompt": (TURNS, MissingText, "there is no prompt"),
    "two prompts": (
        {"chosen": [*ASKED, said(A)], "rejected": [{"role": "user", "content": "Why?"}, said(B)]},
        Mismatch,
        "do not begin with the same prompt",
    ),
    "another prompt": ({"prompt": "Why?", **whole()}, Mismatch, "do not begin with prompt"),
    "one whole conversation": (
        {"prompt": Q, "chosen": [*ASKED, said(A)], "rejected": [said(B)]},
        Mismatch,
        "do not begin with the same prompt",
    ),
    "the user goes on": (
        {name: [*turns, *ASKED] for name, turns in whole().items()},
        Mismatch,
        "are not to the same prompt",
    ),
    "the dialogues part early": (
        {name: [*ASKED, said(text), {"role": "user", "content": text}, said(text)] for name, text in PAIR.items()},
        Mismatch,
        "are not to the same prompt",
    ),
    "the tool has the last word": (
        {name: [*ASKED, said(text), {"role": "tool", "content": "4"}] for name, text in PAIR.items()},
        Mismatch,
        "does not end in a turn of the assistant",
    ),
    "a transcript that the user ends": (
        {"chosen": f"{HH} {A}", "rejected": f"{HH} {B}\n\nHuman: Why?"},
        Mismatch,
        "end in a turn of the assistant",
    ),
    "empty transcripts": ({"chosen": "", "rejected": ""}, MissingText, "there is no prompt"),
    "one transcript": ({"chosen": f"{HH} {A}", "rejected": B}, Mismatch, "end in a turn of the assistant"),
    "the history holds a response": ({"conversations": [*ASKED, said(A)], **TURNS}, Mismatch, "conversations ends in"),
    "an image": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": Q}]}], **PAIR},
        InvalidRequest,
        r"prompt\.0: a part of a message of type 'image'",
    ),
}


@pytest.mark.parametrize(("row", "kind", "reason"), REFUSED.values(), ids=REFUSED)
def test_any_other_row_is_refused_with_its_reason(row: dict[str, Any], kind: type[InvalidRequest], reason: str) -> None:
    with pytest.raises(kind, match=reason):
        read_preference(row)


def test_our_own_names_hold_texts_that_are_never_taken_apart() -> None:
    texts = read_preference({"prompt": Q, "response_a": f"{Q} {A}", "response_b": f"{Q} {B}", **PAIR}, own=True)
    assert (texts.prompt, texts.chosen, texts.rejected) == (Q, f"{Q} {A}", f"{Q} {B}")
    texts = read_preference({"prompt": ASKED, "response_a": [said(A)], "response_b": HH}, own=True)
    assert (texts.prompt, texts.chosen, texts.rejected) == (ASKED, A, HH)
    written = json.dumps(ASKED)
    texts = read_preference({"prompt": written, "response_a": written, "response_b": written, "system": "x"}, own=True)
    assert (texts.prompt, texts.chosen) == (written, written)
    texts = read_preference({"prompt": ASKED, "response_a": A, "response_b": B, "system": "Be brief."}, own=True)
    assert texts.prompt == ASKED
    with pytest.raises(UnknownForm, match="prompt is missing"):
        read_preference({"question": Q, "response_a": A, "response_b": B}, own=True)
