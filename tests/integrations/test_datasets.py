"""Test the filter in `Dataset.map`, against a live service."""

import logging
import math
from typing import Any

import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher

from tests.support.processes import Process
from tinyrm.errors import InvalidInput, UnknownForm
from tinyrm.integrations.datasets import PreferenceFilter

PROMPT, RIGHT, WRONG = "What is 48 + 24?", "48 + 24 = 72, so it is 72.", "I like clips."
PAIRS = [
    {"prompt": PROMPT, "chosen": RIGHT, "rejected": WRONG, "id": 0},
    {"prompt": PROMPT, "chosen": WRONG, "rejected": RIGHT, "id": 1},
    {"prompt": PROMPT, "chosen": RIGHT, "rejected": "72", "id": 2},
]


def probability(service: Process, chosen: str, rejected: str, **options: str) -> float:
    body = {"prompt": PROMPT, "response_a": chosen, "response_b": rejected, **options}
    return float(service.post("/v1/compare", body).json()["probability_a"])


def test_every_row_gets_its_probability(service: Process, url: str) -> None:
    judged = Dataset.from_list(PAIRS).map(PreferenceFilter(url), batched=True, batch_size=2)
    expected = [probability(service, str(pair["chosen"]), str(pair["rejected"])) for pair in PAIRS]
    assert judged["probability_chosen"] == pytest.approx(expected, abs=1e-5)
    assert list(judged["id"]) == [0, 1, 2]


def test_only_rows_above_the_probability_are_kept(service: Process, url: str) -> None:
    sure = probability(service, RIGHT, WRONG)
    kept = Dataset.from_list(PAIRS[:2]).map(PreferenceFilter(url, max(sure, 1 - sure) - 0.01, "p"), batched=True)
    assert list(kept["id"]) == [0 if sure > 0.5 else 1]
    assert list(kept["p"]) == pytest.approx([max(sure, 1 - sure)], abs=1e-5)


def test_conversations_need_no_prompt_column(service: Process, url: str) -> None:
    def talk(response: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]

    pairs = Dataset.from_list([{"chosen": talk(RIGHT), "rejected": talk(WRONG)}])
    judged = pairs.map(PreferenceFilter(url, options={"domain": "reasoning"}), batched=True)
    expected = probability(service, RIGHT, WRONG, domain="reasoning")
    assert judged["probability_chosen"] == pytest.approx([expected], abs=1e-5)


def test_a_pair_that_cannot_be_compared_is_kept_only_if_all_are(service: Process, url: str) -> None:
    pairs = Dataset.from_list([PAIRS[0] | {"subject": "chat"}, PAIRS[0] | {"subject": "cookery"}])
    judged = pairs.map(PreferenceFilter(url, domain="subject"), batched=True)
    assert judged["probability_chosen"][0] == pytest.approx(probability(service, RIGHT, WRONG, domain="chat"), abs=1e-5)
    assert math.isnan(judged["probability_chosen"][1])
    assert len(pairs.map(PreferenceFilter(url, 0.01, domain="subject"), batched=True)) == 1


def test_sets_in_other_forms_get_the_probabilities_of_their_texts(service: Process, url: str) -> None:
    def talk(response: str, **keys: str) -> list[dict[str, str]]:
        turns = [("user", PROMPT), ("assistant", response)]
        return [{keys.get("role", "role"): role, keys.get("content", "content"): text} for role, text in turns]

    expected = pytest.approx([probability(service, RIGHT, WRONG)], abs=1e-5)
    hh = f"\n\nHuman: {PROMPT}\n\nAssistant: "
    share = {"role": "from", "content": "value"}
    rows: list[dict[str, Any]] = [
        {"prompt": PROMPT, "chosen": talk(RIGHT), "rejected": talk(WRONG)},
        {"chosen": hh + RIGHT, "rejected": hh + WRONG},
        {"chosen": talk(RIGHT, **share), "rejected": talk(WRONG, **share)},
        {"instruction": PROMPT, "chosen_response": RIGHT, "rejected_response": WRONG},
    ]
    for row in rows:
        judged = Dataset.from_list([row]).map(PreferenceFilter(url), batched=True)
        assert judged["probability_chosen"] == expected, row
    renamed = Dataset.from_list([{"q": PROMPT, "good": RIGHT, "bad": WRONG, "chosen": "x", "response_a": "y"}])
    judged = renamed.map(PreferenceFilter(url, prompt="q", chosen="good", rejected="bad"), batched=True)
    assert judged["probability_chosen"] == expected
    assert list(judged["chosen"]) == ["x"]


ODD: list[dict[str, Any]] = [
    {"chosen": None},
    {"prompt": None},
    {"prompt": [{"role": "robot", "content": "x"}]},
    {"chosen": [{"role": "user", "content": "Another?"}, {"role": "assistant", "content": "x"}]},
    {"chosen": [{"speaker": "x"}]},
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_one_odd_row_costs_only_its_own_probability(
    service: Process, url: str, odd: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [PAIRS[0], PAIRS[0] | odd]
    batch = {name: [row[name] for row in rows] for name in PAIRS[0]}
    with caplog.at_level(logging.WARNING):
        judged = PreferenceFilter(url)(batch)
    assert judged["probability_chosen"][0] == pytest.approx(probability(service, RIGHT, WRONG), abs=1e-5)
    assert math.isnan(judged["probability_chosen"][1])
    assert "1 of 2 rows have no probability" in caplog.text
    assert PreferenceFilter(url, 0.001)(batch)["id"] == [0]


@pytest.mark.parametrize("odd", ODD[:4], ids=str)
def test_a_batch_of_odd_rows_does_not_end_the_map(url: str, odd: dict[str, Any]) -> None:
    batch = {name: [value] for name, value in (PAIRS[0] | odd).items()}
    assert math.isnan(PreferenceFilter(url)(batch)["probability_chosen"][0])


@pytest.mark.parametrize(
    "batch",
    [
        {"prompt": [PROMPT], "response_0": [RIGHT], "response_1": [WRONG], "better_response_id": [0]},
        {"chosen": [RIGHT], "rejected": [WRONG]},
        {"prompt": [PROMPT], "response_a": [RIGHT], "response_b": [WRONG]},
    ],
    ids=str,
)
def test_a_set_in_no_known_form_is_refused_with_its_columns(url: str, batch: dict[str, list[Any]]) -> None:
    with pytest.raises(UnknownForm, match=", ".join(batch)):
        PreferenceFilter(url)(batch)


def test_a_named_column_that_is_missing_is_refused(url: str) -> None:
    batch = {"prompt": [PROMPT], "chosen": [RIGHT], "rejected": [WRONG]}
    for wrong in ({"prompt": "question"}, {"chosen": "good"}, {"domain": "subject"}):
        with pytest.raises(InvalidInput, match=f"no column '{next(iter(wrong.values()))}'"):
            PreferenceFilter(url, **wrong)(batch)


def test_the_cache_of_map_sees_its_settings(url: str) -> None:
    assert Hasher.hash(PreferenceFilter(url)) == Hasher.hash(PreferenceFilter(url))
    assert Hasher.hash(PreferenceFilter(url)) != Hasher.hash(PreferenceFilter(url, options={"domain": "chat"}))
