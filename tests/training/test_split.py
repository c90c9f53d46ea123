"""Test the split: a share of every subset is held out, with whole prompts and dialogues."""

from collections import Counter

import pytest

from tests.training.conftest import toy_pairs
from tinyrm.pairs import PreferencePair
from training.data.split import opening, split_by_prompt


def pair(prompt: str) -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen="yes", rejected="no")


def of_subsets(sizes: dict[str, int]) -> list[PreferencePair]:
    return [pair(f"{name} {i}").model_copy(update={"subset": name}) for name, n in sizes.items() for i in range(n)]


def test_every_subset_gives_its_share_and_at_least_one_prompt() -> None:
    held_out = split_by_prompt(of_subsets({"large": 1000, "middling": 150, "small": 3, "single": 1}), 0.02, seed=1)[1]
    counts = Counter(p.subset for p in held_out)
    assert counts["large"] == pytest.approx(20, abs=13), "three standard deviations"
    assert counts["middling"] >= 1
    assert counts["small"] == 1
    assert "single" not in counts


def test_domains_serve_as_subsets_if_there_are_none() -> None:
    held_out = split_by_prompt(toy_pairs(200), 0.1, seed=1)[1]
    assert set(Counter(p.domain for p in held_out)) == {"general", "safety"}
    assert len(held_out) == pytest.approx(20, abs=9)


def test_other_subsets_do_not_move_a_prompt() -> None:
    """A specialist and a generalist hold out the same prompts of their common data."""
    alone = split_by_prompt(of_subsets({"a": 300}), 0.1, seed=1)[1]
    together = split_by_prompt(of_subsets({"b": 500, "a": 300, "c": 20}), 0.1, seed=1)[1]
    assert {p.prompt for p in alone} == {p.prompt for p in together if p.subset == "a"}
    shared = [p.model_copy(update={"subset": "d"}) for p in of_subsets({"a": 100})]
    again = split_by_prompt(of_subsets({"a": 300}) + shared, 0.1, seed=1)[1]
    assert {p.prompt for p in alone} == {p.prompt for p in again if p.subset == "a"}, "even where another asks the same"


def test_a_prompt_of_two_subsets_is_on_one_side() -> None:
    shared = [p.model_copy(update={"subset": name}) for p in of_subsets({"a": 200}) for name in ("a", "b")]
    learn, held_out = split_by_prompt(shared + of_subsets({"b": 50}), 0.2, seed=1)
    assert not {p.prompt for p in learn} & {p.prompt for p in held_out}
    counts = Counter(p.subset for p in held_out if p.prompt.startswith("a"))
    assert counts["a"] == counts["b"] == pytest.approx(40, abs=12)


def test_turns_of_one_dialogue_are_on_one_side() -> None:
    """A later prompt of a dialogue contains the earlier ones."""
    turns = [f"Human: {i}\n\nAssistant: fine" for i in range(100)]
    prompts = [*map(str, range(100)), *turns, *(f"{turn}\n\nHuman: more" for turn in turns)]
    learn, held_out = split_by_prompt([pair(prompt) for prompt in prompts], 0.2, seed=1)
    assert len(held_out) == pytest.approx(3 * 20, abs=3 * 8)
    assert not {opening(p.prompt) for p in learn} & {opening(p.prompt) for p in held_out}


def test_a_prompt_with_other_line_ends_is_on_the_same_side() -> None:
    prompts = [f"Question {i}\nof two lines?" for i in range(100)]
    others = [prompt.replace("\n", " \r\n") + "\n" for prompt in prompts]
    learn, held_out = split_by_prompt([pair(prompt) for prompt in prompts + others], 0.2, seed=1)
    assert not {p.prompt.split()[1] for p in learn} & {p.prompt.split()[1] for p in held_out}
    assert held_out
