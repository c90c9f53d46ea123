"""Test the domains and instructions of a model, and the file that contains them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tinyrm.chat import Message
from tinyrm.errors import UnknownDomain
from tinyrm.spec import SPEC_FILE, Spec
from tinyrm.template import ANSWER_COLON

SPEC = Spec(
    template=ANSWER_COLON, max_tokens=300, domains={"safety": "Safer?", "math": "Right?"}, default_domain="math"
)


@pytest.mark.parametrize(("domain", "instruction"), [("safety", "Safer?"), ("math", "Right?"), (None, "Right?")])
def test_a_domain_has_its_instruction(domain: str | None, instruction: str) -> None:
    assert SPEC.instruction(domain) == instruction


@pytest.mark.parametrize("domain", ["code", "", "Math"])
def test_an_unknown_domain_is_refused_with_the_known_names(domain: str) -> None:
    with pytest.raises(UnknownDomain, match="math, safety"):
        SPEC.instruction(domain)


@pytest.mark.parametrize(
    ("domain", "own", "instruction"),
    [("safety", None, "Safer?"), (None, None, "Right?"), ("safety", "Kinder?", "Kinder?"), (None, "", "")],
)
def test_an_instruction_takes_the_place_of_the_domains_own(
    domain: str | None, own: str | None, instruction: str
) -> None:
    assert SPEC.resolve("2 + 2?", domain, own) == (instruction, "2 + 2?")


def test_a_domain_must_exist_even_if_an_instruction_takes_its_place() -> None:
    with pytest.raises(UnknownDomain, match="no domain 'code'"):
        SPEC.resolve("2 + 2?", "code", "Better?")


def test_an_unknown_domain_becomes_the_default_only_on_request() -> None:
    assert SPEC.resolve("p", "code", or_default=True).instruction == "Right?"
    assert SPEC.resolve("p", "safety", or_default=True).instruction == "Safer?"
    assert SPEC.instruction("code", or_default=True) == "Right?"


def test_messages_become_the_prompt_as_the_template_renders_them() -> None:
    messages = [Message(role="system", content="Be brief."), Message(role="user", content="Why?")]
    assert (
        SPEC.resolve(messages).prompt == SPEC.template.render_messages(messages) == "System: Be brief.\n\nHuman: Why?"
    )
    assert SPEC.resolve(messages[1:]).prompt == "Why?"


def test_the_default_domain_must_exist() -> None:
    with pytest.raises(ValidationError, match="default_domain"):
        Spec(domains={"math": "Right?"}, default_domain="general")


@pytest.mark.parametrize("wrong", [{"domains": {}}, {"max_tokens": 0}, {"max_length": 5}])
def test_a_spec_of_another_shape_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate(wrong)


def test_a_saved_spec_is_loaded_unchanged(tmp_path: Path) -> None:
    SPEC.save(tmp_path)
    assert Spec.load(tmp_path) == SPEC
    assert (tmp_path / SPEC_FILE).read_text().endswith("}\n")
