"""Test the custom classifier, built and called as the harness does, against a live service."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.processes import Process
from tinyrm.errors import InvalidInput, Mismatch
from tinyrm.integrations.rewardbench import Pipeline, model_config

PAIRS = [("What is 2 + 2?", "4", "5"), ("Say hello.", "Hello, my friend!", "No."), ("Why?", "Because.", "I refuse.")]


def conversation(prompt: str, response: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": response},
    ]


def pipeline(url: str, **options: Any) -> Pipeline:
    """Return the classifier with the settings of the harness."""
    config = model_config(url, **options)
    assert (config["quantized"], config["custom_dialogue"], config["model_type"]) == (False, True, "Custom Classifier")
    model = config["model_builder"]("tinyrm", device_map="auto", torch_dtype=torch.float16, trust_remote_code=False)
    built: Pipeline = config["pipeline_builder"]("text-classification", model=model, tokenizer=SimpleNamespace())
    assert built.model.config.pad_token_id is None
    built.model.config.pad_token_id = 0
    return built


def test_the_classifier_returns_the_winner_of_each_pair(service: Process, url: str) -> None:
    chosen = [conversation(prompt, a) for prompt, a, _ in PAIRS]
    rejected = [conversation(prompt, b) for prompt, _, b in PAIRS]
    wins = pipeline(url)(chosen, rejected, batch_size=64, truncation=True, padding=True, max_length=2048)
    expected = [
        service.post("/v1/compare", {"prompt": a[:-1], "response_a": a[-1]["content"], "response_b": b[-1]["content"]})
        for a, b in zip(chosen, rejected, strict=True)
    ]
    assert wins.dtype == torch.bool
    assert wins.cpu().numpy().tolist() == [reply.json()["preferred"] == "a" for reply in expected]
    assert pipeline(url)(rejected, chosen).tolist() == [not win for win in wins.tolist()]


def test_a_tie_is_a_loss(url: str) -> None:
    same = [conversation("Why?", "Because.")]
    assert pipeline(url)(same, same).tolist() == [False]


def test_a_pair_of_two_prompts_is_an_error(url: str) -> None:
    with pytest.raises(Mismatch, match="not to the same prompt"):
        pipeline(url)([conversation("Why?", "a")], [conversation("How?", "b")])


def test_a_refused_pair_is_an_error_and_not_a_loss(url: str) -> None:
    with pytest.raises(InvalidInput, match="unknown_domain"):
        pipeline(url, domain="cookery")([conversation("Why?", "a")], [conversation("Why?", "b")])
