"""Test that an ambiguous template is refused, and that dialogues become one prompt text."""

from itertools import pairwise

import pytest
from pydantic import TypeAdapter, ValidationError

from tinyrm.chat import Message
from tinyrm.errors import InvalidTemplate
from tinyrm.template import ANSWER_COLON, CHATML, FIGURE2, PAIRRM, TEMPLATES, Template, split_slot

MESSAGE = TypeAdapter(Message)
PARTS = ("[CLS]", "{instruction}", " {prompt}", " {response_a}", " {response_b}", "[MASK]", "[SEP]")


def build(*segments: str) -> Template:
    return Template(name="test", segments=segments, label_words=(" 0", " 1"))


def test_a_template_with_every_part_once_is_accepted() -> None:
    assert build(*PARTS).segments == PARTS


@pytest.mark.parametrize("missing", [part for part in PARTS if part not in ("[CLS]", "[SEP]", "{instruction}")])
def test_a_template_without_a_part_is_refused(missing: str) -> None:
    with pytest.raises(ValidationError, match="exactly"):
        build(*(part for part in PARTS if part != missing))


@pytest.mark.parametrize("twice", [part for part in PARTS if part not in ("[CLS]", "[SEP]")])
def test_a_template_with_a_part_twice_is_refused(twice: str) -> None:
    with pytest.raises(ValidationError, match="exactly"):
        build(*PARTS, twice)


@pytest.mark.parametrize("malformed", ["{prompt} after", " {prompt}{prompt}", "{question}", "{{prompt}", "{prompt}\n"])
def test_a_slot_must_end_its_segment(malformed: str) -> None:
    assert split_slot(malformed) == (malformed, None)
    with pytest.raises(ValidationError, match=r"each slot exactly once|a slot is one of"):
        build(*(malformed if part == " {prompt}" else part for part in PARTS))


def test_only_a_template_of_a_pair_has_a_mask_and_label_words() -> None:
    alone = build(*PARTS).of_one_response()
    assert (alone.reads, alone.label_words, alone.slots) == ("response", None, ["instruction", "prompt", "response"])
    with pytest.raises(ValidationError, match="nothing is chosen"):
        Template(name="test", segments=(*alone.segments, "[MASK]"), label_words=(" 0", " 1"))
    with pytest.raises(ValidationError, match="or neither a mask nor label words"):
        Template(name="test", segments=alone.segments, label_words=(" 0", " 1"))
    with pytest.raises(InvalidTemplate, match="cannot show one response"):
        alone.of_one_response()


def test_responses_joined_differently_are_refused() -> None:
    with pytest.raises(ValidationError, match="same joining text"):
        build(*(" Choice 1: {response_b}" if part == " {response_b}" else part for part in PARTS))


@pytest.mark.parametrize(
    ("segment", "split"),
    [(" {prompt}", (" ", "prompt")), ("{response_a}", ("", "response_a")), (" Question:", (" Question:", None))],
)
def test_split_slot_separates_joint_and_slot(segment: str, split: tuple[str, str | None]) -> None:
    assert split_slot(segment) == split


@pytest.mark.parametrize("template", [FIGURE2, ANSWER_COLON], ids=lambda template: template.name)
def test_templates_of_a_cloze_end_in_mask_and_separator(template: Template) -> None:
    assert template.segments[0] == "[CLS]"
    assert template.segments[-2:] == ("[MASK]", "[SEP]")


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_shipped_templates_are_found_by_name_and_survive_a_file(template: Template) -> None:
    assert TEMPLATES[template.name] is template
    assert Template.model_validate_json(template.model_dump_json()) == template


def test_fields_that_older_files_lack_are_not_written_unless_set() -> None:
    assert not {"turns", "prompt_share"} & FIGURE2.model_dump().keys()
    assert CHATML.model_dump()["turns"].keys() == {"system", "user", "assistant"}
    assert 0 < PAIRRM.model_dump()["prompt_share"] < 1


def test_turns_must_name_every_speaker() -> None:
    turns = {role: turn for role, turn in CHATML.model_dump()["turns"].items() if role != "system"}
    with pytest.raises(ValidationError, match="turns need each of system, user, assistant"):
        Template.model_validate(CHATML.model_dump() | {"turns": turns})


def test_the_prompts_share_is_for_two_responses() -> None:
    with pytest.raises(ValidationError, match="template of two responses"):
        Template.model_validate(CHATML.model_dump() | {"prompt_share": 0.5})


def test_fixed_text_never_ends_in_a_lone_space_before_user_text() -> None:
    for before, after in pairwise(FIGURE2.segments):
        assert not (split_slot(after)[1] and before.endswith(" ")), "the space belongs to the slot"


def test_a_single_user_message_has_no_role() -> None:
    assert FIGURE2.render_messages([Message(role="user", content="Hello {prompt}")]) == "Hello {prompt}"


def test_the_text_of_a_dialogue_contains_its_roles() -> None:
    dialogue = [
        Message(role="system", content="Be kind."),
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello!"),
        Message(role="user", content="Bye"),
    ]
    assert FIGURE2.render_messages(dialogue) == "System: Be kind.\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Bye"


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_single_message_of_another_role_keeps_its_role(role: str) -> None:
    message = MESSAGE.validate_python({"role": role, "content": "Hi"})
    assert FIGURE2.render_messages([message]) == f"{FIGURE2.turn_names[role]}: Hi"


@pytest.mark.parametrize("wrong", [{"role": "tool"}, {"content": ""}, {"name": "x"}])
def test_a_message_of_another_shape_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        MESSAGE.validate_python({"role": "user", "content": "Hi"} | wrong)
