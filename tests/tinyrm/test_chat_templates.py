"""Test that the turns of policies' chat templates are read back, and where a response begins behind them.

The templates here are minimal; what stands between the texts is as in the templates that the models come with.
"""

import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from jinja2 import Environment

from tinyrm.chat import Message, Prompt
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
from tinyrm.reasoning import drop_reasoning


@dataclass(frozen=True)
class Family:
    """How a family writes a dialogue.

    turn: a Jinja template of one turn, with `role` and `text`.
    opened: what the policy continues.
    end: what the policy writes at the end of its response.
    beginning: of the dialogue.
    before: what the policy writes before its response.
    thought: what the response has in a whole dialogue, because the template opened it.
    """

    turn: str
    opened: str
    end: str
    beginning: str = ""
    before: str = ""
    thought: str = ""

    def write(self, *turns: tuple[str, str], continued: bool = True) -> str:
        template = Environment(autoescape=False, keep_trailing_newline=True).from_string(self.turn)
        written = "".join(template.render(role=role, text=text) for role, text in turns)
        return self.beginning + written + (self.opened if continued else "")


def wide(text: str) -> str:
    """Return a text with the bars and the underscores of DeepSeek."""
    return text.replace("~", "\uff5c").replace("_", "\u2581")


DEEPSEEK = wide(
    "{% if role == 'user' %}<~User~>{{ text }}{% elif role == 'assistant' %}<~Assistant~>{{ text }}<~end_of_sentence~>"
    "{% elif role == 'tool' %}<~tool_outputs_begin~><~tool_output_begin~>{{ text }}<~tool_output_end~>"
    "<~tool_outputs_end~>{% else %}<~begin_of_sentence~>{{ text }}{% endif %}"
)
FAMILIES = {
    "gpt-oss": Family(
        "{% if role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ text }}<|end|>"
        "{% elif role == 'tool' %}<|start|>functions.sum to=assistant<|channel|>commentary<|message|>{{ text }}<|end|>"
        "{% else %}<|start|>{{ role }}<|message|>{{ text }}<|end|>{% endif %}",
        "<|start|>assistant",
        "<|return|>",
        before="<|channel|>final<|message|>",
    ),
    "Command R": Family(
        "{% if role == 'tool' %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>\n{{ text }}</results>"
        "{% else %}<|START_OF_TURN_TOKEN|><|{{ {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'}[role] }}"
        "_TOKEN|>{{ text }}{% endif %}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
    ),
    "Command A": Family(
        "<|START_OF_TURN_TOKEN|>{% if role == 'tool' %}<|SYSTEM_TOKEN|><|START_TOOL_RESULT|>{{ text }}"
        "<|END_TOOL_RESULT|>"
        "{% elif role == 'assistant' %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{{ text }}<|END_RESPONSE|>"
        "{% else %}<|{{ role.upper() }}_TOKEN|>{{ text }}{% endif %}<|END_OF_TURN_TOKEN|>\n",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
    ),
    "Kimi K2": Family(
        "{% if role == 'user' %}<|im_user|>user{% elif role == 'assistant' %}<|im_assistant|>assistant"
        "{% elif role == 'tool' %}<|im_system|>sum{% else %}<|im_system|>system{% endif %}<|im_middle|>"
        "{{ text }}<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>",
        "<|im_end|>[EOS]",
    ),
    "Granite 3": Family(
        "<|start_of_role|>{{ 'tool_response' if role == 'tool' else role }}<|end_of_role|>{{ text }}<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>",
    ),
    "Granite 4, with controls": Family(
        "<|start_of_role|>{{ role }}<|end_of_role|>{{ text }}<|end_of_text|>\n",
        '<|start_of_role|>assistant {"length": "long"}<|end_of_role|>',
        "<|end_of_text|>\n",
    ),
    "Qwen3": Family(
        "{% if role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ text }}\n</tool_response><|im_end|>\n"
        "{% else %}<|im_start|>{{ role }}\n{{ text }}<|im_end|>\n{% endif %}",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
    ),
    "Qwen3, told not to think": Family(
        "<|im_start|>{{ role }}\n{{ text }}<|im_end|>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_end|>\n",
    ),
    "DeepSeek V3": Family(DEEPSEEK, wide("<~Assistant~>"), wide("<~end_of_sentence~>")),
    "DeepSeek R1": Family(DEEPSEEK, wide("<~Assistant~><think>\n"), wide("<~end_of_sentence~>"), thought="<think>\n"),
    "DeepSeek V3.1": Family(
        wide(
            "{% if role == 'user' %}<~User~>{{ text }}{% elif role == 'assistant' %}<~Assistant~></think>{{ text }}"
            "<~end_of_sentence~>{% elif role == 'tool' %}<~tool_output_begin~>{{ text }}<~tool_output_end~>"
            "{% else %}<~begin_of_sentence~>{{ text }}{% endif %}"
        ),
        wide("<~Assistant~></think>"),
        wide("<~end_of_sentence~>"),
    ),
    "Magistral": Family(
        "{% if role == 'user' %}[INST]{{ text }}[/INST]{% elif role == 'assistant' %}{{ text }}</s>"
        "{% elif role == 'tool' %}[TOOL_RESULTS]{{ text }}[/TOOL_RESULTS]"
        "{% else %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]{% endif %}",
        "",
        "</s>",
        "<s>",
    ),
    "Gemma 4": Family(
        "<|turn>{{ 'model' if role == 'assistant' else role }}\n{{ text }}<turn|>\n",
        "<|turn>model\n<|channel>thought\n<channel|>",
        "<turn|>",
        "<bos>",
    ),
    "Seed-OSS": Family("<seed:bos>{{ role }}\n{{ text }}<seed:eos>", "<seed:bos>assistant\n", "<seed:eos>"),
}
SYSTEM, HELLO, HI = ("system", "Be brief."), ("user", "Hello!\n\nWho are you?"), ("assistant", "Hi.")
SUM, RESULT = ("user", "What is 2 + 2?"), ("tool", '{"sum": 4}')
RESPONSE = "2 + 2 = 4.\n\n**Four.**"


def messages(*turns: tuple[str, str]) -> list[Message]:
    def of(role: str, text: str) -> Message:
        if role in ("system", "assistant"):
            return Message(role="system" if role == "system" else "assistant", content=text)
        return Message(role="user", content=text)

    return [of(role, text) for role, text in turns]


@pytest.fixture(params=FAMILIES.values(), ids=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    family: Family = request.param
    return family


def test_a_dialogue_is_read_back(family: Family) -> None:
    turns = SYSTEM, HELLO, HI, SUM
    prompt, written = family.write(*turns), family.before + RESPONSE + family.end
    assert parse_prompt(prompt) == messages(*turns)
    assert split_dialogue(prompt + written) == (messages(*turns), family.thought + RESPONSE)
    assert find_response(prompt + written, prompt) == strip_special(written) == RESPONSE


def test_the_result_of_a_tool_is_not_of_the_system(family: Family) -> None:
    turns = parse_turns(family.write(SYSTEM, SUM, ("assistant", "sum(2, 2)"), RESULT, ("assistant", "Four."), HELLO))
    speaker, text = turns[3]
    assert RESULT[1] in text
    assert speaker == ("user" if "<tool_response>" in text else "tool")
    assert turns[4:6] == [("assistant", "Four."), HELLO]


def test_a_prompt_that_was_truncated_on_its_left_is_found(family: Family) -> None:
    prompt = family.write(SYSTEM, HELLO, HI, ("user", "What is 2 + 2? " * 20))
    for cut in (1, 7, 40, len(prompt) - MIN_OVERLAP):
        assert find_response(prompt[cut:] + family.before + RESPONSE + family.end, prompt) == RESPONSE


MENTIONS = (
    "<|start|>assistant<|channel|>final<|message|>",
    "<|im_user|>user<|im_middle|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "<|start_of_role|>assistant<|end_of_role|>",
    wide("<~User~>"),
    "<|turn>model\n",
    "[INST]",
)


def test_a_user_may_mention_the_markers_of_another_family(family: Family) -> None:
    for marker in MENTIONS:
        if marker[:7] not in family.turn:
            question = ("user", f"What is {marker} for?")
            assert parse_prompt(family.write(question)) == messages(question)


@pytest.mark.parametrize("marker", MENTIONS)
def test_a_text_that_mentions_a_marker_is_no_dialogue(marker: str) -> None:
    assert parse_prompt(f"What is {marker} for?") == f"What is {marker} for?"


HARMONY = (
    "<|start|>user<|message|>What is 2 + 2?<|end|>"
    "<|start|>assistant<|channel|>analysis<|message|>I need the tool.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.sum <|constrain|>json<|message|>{"a": 2, "b": 2}<|call|>'
    "<|start|>functions.sum to=assistant<|channel|>commentary<|message|>4<|end|><|start|>assistant"
)


def test_successive_messages_of_gpt_oss_are_one_turn() -> None:
    thought = "<|channel|>analysis<|message|>It is 4.<|end|><|start|>assistant<|channel|>final<|message|>Four."
    prompt, response = split_dialogue(HARMONY + thought + "<|return|>")
    assert [turn["role"] for turn in prompt] == ["user", "assistant", "user"]
    assert prompt[1]["content"].endswith('{"a": 2, "b": 2}')
    assert prompt[2]["content"] == "4"
    assert response == thought == find_response(HARMONY + thought + "<|return|>", HARMONY)


def test_what_the_template_opened_is_no_turn() -> None:
    for opened in ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", ""):
        assert len(parse_markup(HARMONY + opened)) == 3
    assert parse_markup("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n") == messages(("user", "Hi"))
    continued = parse_markup("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>Well")
    assert continued[1]["content"] == "<think>Well"


# Of processor time; one of these takes a fifth of it at most.
LONG_S = 8.0


@pytest.mark.parametrize(
    "piece",
    [
        "<|start|>",
        "<|start|>" + "a" * 200,
        "<|start|>assistant",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|start|>a<|channel|>" + "a" * 199,
        "<|im_system|>" + "a" * 200,
        "<|im_user|>user<|im_middle|>",
        "<|START_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
        "<|start_of_role|>" + "a" * 200,
        "<|start_of_role|>user<|end_of_role|>",
        "<think>",
        "<think> </think>",
        "<think>" + " " * 1000,
        wide("<~User~>"),
        "[SYSTEM_PROMPT]",
    ],
    ids=lambda piece: piece[:30],
)
def test_a_long_text_is_read_in_linear_time(piece: str) -> None:
    """Steps that grow with the square of the length take longer than is allowed here."""
    text, began = piece * (2_000_000 // len(piece)), time.process_time()
    parse_prompt(text)
    parse_turns("<|start|>" + text)
    strip_special(text)
    find_response(text + "b", text + "c")
    assert time.process_time() - began < LONG_S


def test_a_text_of_very_many_turns_is_not_a_dialogue() -> None:
    turn = "<|start|>user<|message|>x<|end|>"
    assert len(parse_markup(turn * MAX_TURNS)) == MAX_TURNS
    assert parse_markup(turn * (MAX_TURNS + 1)) == []


TRL = find_spec("trl")
# Models of pictures, whose text has no markers or whose messages must be parts.
OF_PICTURES = ("idefics3", "llava_next", "smolvlm")


@pytest.mark.skipif(not TRL, reason="TRL is not installed")
def test_the_templates_of_published_models_that_trl_ships_are_read_back() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    assert TRL
    assert TRL.origin
    shipped = (Path(TRL.origin).parent / "chat_templates").glob("*.jinja")
    files = [file for file in shipped if not file.stem.startswith(OF_PICTURES)]
    assert len(files) > 20

    def write(file: Path, *turns: dict[str, str], continued: bool) -> str:
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        template = file.read_text(encoding="utf-8")
        written, _ = render_jinja_template(
            [list(turns)], chat_template=template, add_generation_prompt=continued, **tokens
        )
        return str(written[0])

    def texts(prompt: Prompt) -> list[str]:
        assert not isinstance(prompt, str)
        return [turn["content"] for turn in prompt if turn["role"] != "system"]

    before = [{"role": role, "content": text} for role, text in (HELLO, HI, SUM)]
    response = {"role": "assistant", "content": RESPONSE, "reasoning_content": "Two and two."}
    for file in files:
        prompt = write(file, *before, continued=True)
        whole = write(file, *before, response, continued=False)
        assert texts(parse_prompt(prompt)) == [HELLO[1], HI[1], SUM[1]], file.stem
        found, written = split_dialogue(whole)
        assert texts(found) == [HELLO[1], HI[1], SUM[1]], file.stem
        assert drop_reasoning(written) == RESPONSE, file.stem
        if whole.startswith(prompt):
            assert drop_reasoning(find_response(whole, prompt)) == RESPONSE, file.stem
