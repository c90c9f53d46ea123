"""What trainers hand over becomes what the service takes."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tinyrm.integrations.texts import NOTHING_SAID, prompt_of, response_of, split_conversation

MODULES = sorted(file.stem for file in (REPOSITORY / "tinyrm" / "integrations").glob("*.py"))


def test_text_stays_as_it_is() -> None:
    assert prompt_of("What is\n2 + 2? ") == "What is\n2 + 2? "
    assert response_of(" 4\n") == " 4\n"


def test_turns_keep_role_and_text_and_lose_what_the_service_does_not_know() -> None:
    turns = [
        {"role": "system", "content": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]},
    ]
    assert prompt_of(turns) == [{"role": "user", "content": "What is 2 + 2?"}]


def test_a_completion_of_several_turns_is_all_their_text() -> None:
    turns = [
        {"role": "assistant", "content": "Let me see.", "tool_calls": [{"name": "add"}]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]
    assert response_of(turns) == "Let me see.\n\n4\n\nIt is 4."


@pytest.mark.parametrize("nothing", ["", [], [{"role": "assistant", "content": ""}]])
def test_nothing_said_is_still_a_response_and_a_prompt(nothing: object) -> None:
    assert response_of(nothing) == NOTHING_SAID  # type: ignore[arg-type]
    assert prompt_of(nothing) == NOTHING_SAID  # type: ignore[arg-type]


def test_a_conversation_ends_in_its_response() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert split_conversation([*turns, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]) == (
        [*turns, {"role": "user", "content": "c"}], "d",
    )  # fmt: skip
    with pytest.raises(ValueError, match="at least 2 messages"):
        split_conversation(turns[:1])


def test_importing_all_of_them_loads_no_trainer() -> None:
    heavy = ("torch", "transformers", "trl", "verl", "rewardbench", "datasets", "pandas")
    code = (
        f"import importlib, sys\nfor name in {MODULES}: importlib.import_module('tinyrm.integrations.' + name)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
