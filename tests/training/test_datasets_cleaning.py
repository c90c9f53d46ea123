"""Test which pairs are dropped, and the name under which they are counted."""

import pytest

from training.data.cleaning import Raw, clean, normalise


def raw(prompt: str, chosen: str, rejected: str, domain: str | None = None) -> Raw:
    return Raw(prompt, chosen, rejected, domain, "origin")


def test_a_good_pair_is_kept_as_it_is() -> None:
    loaded = clean([raw(" p ", "c\n", " r", "chat")])
    (pair,) = loaded.pairs
    assert pair.model_dump() == {
        "prompt": " p ",
        "chosen": "c\n",
        "rejected": " r",
        "domain": "chat",
        "subset": "origin",
    }
    assert loaded.dropped == {}


@pytest.mark.parametrize("texts", [("", "c", "r"), ("p", " \n", "r"), ("p", "c", "")])
def test_blank_texts_are_empty(texts: tuple[str, str, str]) -> None:
    assert clean([raw(*texts)]).dropped == {"empty": 1}


@pytest.mark.parametrize("other", ["answer", "answer  ", "\nanswer\n", "answer\r\n"])
def test_responses_that_look_the_same_are_identical(other: str) -> None:
    assert clean([raw("p", "answer", other)]).dropped == {"identical": 1}


def test_unicode_forms_of_a_word_are_the_same_and_case_and_indentation_are_not() -> None:
    assert normalise("caf\u00e9") == normalise("cafe\u0301")
    assert len(clean([raw("p", "  return", "return"), raw("p", "Yes", "yes")]).pairs) == 2


def test_the_first_of_equal_pairs_is_kept() -> None:
    loaded = clean([raw("p", "c", "r"), raw("p", "c ", "r"), raw("p\n", "c", "r"), raw("q", "c", "r")])
    assert [pair.prompt for pair in loaded.pairs] == ["p", "q"]
    assert loaded.dropped == {"duplicate": 2}


def test_a_pair_judged_both_ways_is_not_kept_at_all() -> None:
    loaded = clean([raw("p", "c", "r"), raw("p", "r", "c"), raw("p", "c", "r"), raw("p", "c", "other")])
    assert [pair.rejected for pair in loaded.pairs] == ["other"]
    assert loaded.dropped == {"contradiction": 3}


def test_two_domains_may_judge_a_pair_differently() -> None:
    loaded = clean([raw("p", "c", "r", "chat"), raw("p", "r", "c", "safety"), raw("p", "c", "r", "chat")])
    assert [pair.domain for pair in loaded.pairs] == ["chat", "safety"]
    assert loaded.dropped == {"duplicate": 1}


def test_reasons_of_a_reader_are_counted_with_the_others() -> None:
    loaded = clean(["tie", raw("p", "", "r"), "tie", raw("p", "c", "r"), "mismatch"])
    assert loaded.dropped == {"tie": 2, "empty": 1, "mismatch": 1}
    assert loaded.read == 5


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_half_a_surrogate_pair_is_dropped_before_it_stops_a_run(field: str) -> None:
    texts = {"prompt": "p", "chosen": "c", "rejected": "r"} | {field: "cut \ud83d"}
    assert clean([raw(**texts)]).dropped == {"broken": 1}
