"""Test the filter in `Dataset.map`, against a live service."""

import math

import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher

from tests.support.processes import Process
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


def test_the_cache_of_map_sees_its_settings(url: str) -> None:
    assert Hasher.hash(PreferenceFilter(url)) == Hasher.hash(PreferenceFilter(url))
    assert Hasher.hash(PreferenceFilter(url)) != Hasher.hash(PreferenceFilter(url, options={"domain": "chat"}))
