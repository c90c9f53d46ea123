"""Test the count of training prompts that share words with evaluation prompts, against a plain reference."""

import random
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.training import published
from tests.training.published import jsonl, parquet
from tinyrm.errors import InvalidInput
from tinyrm.pairs import PreferencePair
from training.data.decontamination import SIZES, decontaminate, read_prompts

NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pairs(*prompts: str) -> list[PreferencePair]:
    return [PreferencePair(prompt=prompt, chosen="c", rejected="r") for prompt in prompts]


def words(count: int, start: int = 0) -> str:
    return " ".join(NUMBERS[start : start + count])


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        (f"Please count: {words(8)}!", {8}),
        (f"Please count: {words(7)}!", set()),
        (f"{words(13)} more", {8, 13}),
        (f"{words(12)} more", {8}),
        (words(13).upper().replace(" ", ", "), {8, 13}),
        (f"{words(7)} {words(7, start=7)} and so on", {8, 13}),
        (f"{words(7)} gap {words(7, start=7)}", set()),
    ],
)
def test_words_in_a_row_are_found(prompt: str, found: set[int]) -> None:
    overlap = decontaminate(pairs(prompt), {"set": [words(14), "something else"]}).overlaps["set"]
    assert {n for n in SIZES if overlap.pairs[n]} == found
    assert {n for n in SIZES if overlap.prompts[n]} == found
    assert overlap.evaluation_prompts == 2


def test_words_of_two_prompts_do_not_form_a_run() -> None:
    halves = pairs(words(7), words(7, start=7))
    assert decontaminate(halves, {"set": [words(14)]}).overlaps["set"].pairs == {8: 0, 13: 0}
    assert decontaminate(pairs(words(14)), {"set": [words(7), words(7, start=7)]}).overlaps["set"].pairs[8] == 0


def test_a_short_prompt_counts_if_it_is_the_same_throughout() -> None:
    result = decontaminate(pairs("What is 2 + 2?", "What is 2?", "!"), {"set": ["what is 2+2", "?"]}, drop=13)
    assert (result.overlaps["set"].same_pairs, result.overlaps["set"].same_prompts) == (1, 1)
    assert [pair.prompt for pair in result.pairs] == ["What is 2?", "!"]


@pytest.mark.parametrize(("drop", "left"), [(None, 4), (13, 3), (8, 2)])
def test_overlapping_pairs_are_dropped_on_request(drop: int | None, left: int) -> None:
    given = pairs("clean", words(8), words(13), "clean too")
    result = decontaminate(given, {"none": ["unrelated"], "one": [words(14)]}, drop)
    assert (len(result.pairs), result.dropped) == (left, 4 - left)
    assert result.overlaps["one"].pairs == {8: 2, 13: 1}
    assert result.overlaps["none"].pairs == {8: 0, 13: 0}


def test_other_sizes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="8 and 13"):
        decontaminate(pairs("a"), {"set": ["a"]}, 5)


def test_nothing_to_compare_is_no_overlap() -> None:
    assert decontaminate([], {"set": [words(14)]}).overlaps["set"].pairs == {8: 0, 13: 0}
    assert decontaminate(pairs("a"), {"empty": []}, 8).dropped == 0
    assert decontaminate(pairs("a"), {}, 8).overlaps == {}


def reference(prompts: list[str], others: list[str], n: int) -> int:
    def grams(text: str) -> set[tuple[str, ...]]:
        found = re.findall(r"\w+", text.lower())
        return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}

    every = set().union(*map(grams, others))
    return sum(not every.isdisjoint(grams(prompt)) for prompt in prompts)


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_a_plain_search(seed: int) -> None:
    """Few words make many runs."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(["a", "B,", "c"], [8, 2, 1], k=rng.randint(0, 24))) for _ in range(90)]
    train, sets = texts[:50], {"one": texts[50:60], "two": texts[60:]}
    overlaps = decontaminate(pairs(*(text or "empty" for text in train)), sets).overlaps
    for name, others in sets.items():
        for n in SIZES:
            assert overlaps[name].pairs[n] == reference(train, others, n)
            assert overlaps[name].prompts[n] == reference(others, train, n)
    assert 0 < overlaps["two"].pairs[13] < overlaps["two"].pairs[8] < 50


REWARDBENCH = {"prompt": "p", "chosen": "c", "chosen_model": "m", "rejected": "r", "rejected_model": "m"} | {
    "subset": "alpacaeval-easy",
    "id": 1,
}


@pytest.mark.parametrize(
    ("rows", "prompts"),
    [
        ([REWARDBENCH | {"prompt": "one"}, REWARDBENCH | {"prompt": "one"}, REWARDBENCH], ["one", "p"]),
        # RM-Bench, JudgeBench, and messages for a prompt.
        ([{"id": 1, "prompt": "x", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}], ["x"]),
        ([{"pair_id": "1", "question": "y", "response_A": "a", "response_B": "b", "label": "A>B"}], ["y"]),
        ([{"prompt": [{"role": "user", "content": "z"}, {"role": "assistant", "content": "w"}]}], ["z\n\nw"]),
        ([{"prompt": [{"from": "human", "value": "z"}, {"from": "gpt", "value": None}]}], ["z"]),
        ([{"prompt": None}, {"prompt": "z"}], ["z"]),
    ],
)
def test_prompts_of_evaluation_sets_are_found(rows: list[dict[str, Any]], prompts: list[str], tmp_path: Path) -> None:
    jsonl(rows, tmp_path / "set.jsonl")
    assert read_prompts(tmp_path / "set.jsonl") == prompts


def test_prompts_are_read_from_a_folder_of_parquet(tmp_path: Path) -> None:
    parquet([REWARDBENCH], published.REWARDBENCH, tmp_path / "bench" / "data" / "filtered-00000-of-00001.parquet")
    assert read_prompts(tmp_path / "bench") == ["p"]


def test_a_set_without_prompts_is_refused(tmp_path: Path) -> None:
    jsonl([{"text": "t"}], tmp_path / "set.jsonl")
    with pytest.raises(InvalidInput, match="no prompt or question; its columns are text"):
        read_prompts(tmp_path / "set.jsonl")
