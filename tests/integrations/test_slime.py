"""Test slime's reward function as slime calls it, against a live service; its own code calls it in tests/clients."""

import asyncio
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.processes import Process
from tests.support.scripted_server import error, scripted
from tinyrm.errors import CallRefused
from tinyrm.integrations.slime import reward

SUM = "What is 48 + 24?"
SUMS = ["72, because 48 + 24 = 72.", "I like clips.", "96"]
TEMPLATED = f"<|im_start|>user\n{SUM}<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Sample:
    response: str
    prompt: Any = TEMPLATED
    label: Any = None


def call(rm_url: str | None, samples: Any) -> Any:
    return asyncio.run(reward(Namespace(rm_url=rm_url), samples, evaluation=False))


def direct(service: Process, path: str, **body: Any) -> Any:
    reply = service.post(path, {"prompt": [{"role": "user", "content": SUM}], **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_group_is_compared_and_markup_and_the_address_of_the_dialect_are_understood(
    service: Process, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [Sample(f"{text}<|im_end|>") for text in SUMS]
    expected = direct(service, "/v1/rewards", responses=SUMS)["rewards"]
    assert call(url, samples) == pytest.approx(expected, abs=1e-4)
    assert call(f"{url}/rm", samples) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setenv("TINYRM_URL", url)
    assert call(None, [Sample(text, [{"role": "user", "content": SUM}]) for text in SUMS]) == pytest.approx(
        expected, abs=1e-4
    )


def test_options_are_in_the_query_of_the_address(service: Process, url: str) -> None:
    expected = direct(service, "/v1/rewards", responses=SUMS, domain="reasoning", scale="unit")["rewards"]
    samples = [Sample(text) for text in SUMS]
    assert call(f"{url}?domain=reasoning&scale=unit", samples) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(CallRefused, match="cookery"):
        call(f"{url}?domain=cookery", samples)


def test_a_label_is_a_reference_if_that_is_the_strategy(service: Process, url: str) -> None:
    body = {"strategy": "reference", "reference": "72", "scale": "unit"}
    expected = direct(service, "/v1/rewards", responses=SUMS, **body)["rewards"]
    samples = [Sample(text, label=72) for text in SUMS]
    assert call(f"{url}?strategy=reference", samples) == pytest.approx(expected, abs=1e-4)
    assert call(f"{url}?strategy=reference", samples[0]) == pytest.approx(expected[0], abs=1e-4)


def test_a_sample_alone_gets_its_score_and_an_empty_one_is_far_below_the_mean(service: Process, url: str) -> None:
    (scored,) = direct(service, "/v1/score", responses=SUMS[:1])["results"]
    assert call(url, Sample(SUMS[0])) == pytest.approx(scored["score"], abs=1e-4)
    empty = Sample("<|im_end|>", "What is love?")
    (blank,) = service.post("/v1/score", {"prompt": "What is love?", "responses": [" "]}).json()["results"]
    assert call(f"{url}?empty=judge", empty) == pytest.approx(blank["score"], abs=1e-4)
    assert blank["score"] > -3
    assert call(url, [empty]) == [-3]


def test_a_sample_alone_is_refused_by_a_model_that_compares_with_what_to_set() -> None:
    with scripted(error(422, "not_pointwise")) as server, pytest.raises(CallRefused) as refused:
        call(server.url, Sample("4"))
    assert "--group-rm" in refused.value.__notes__[0]
